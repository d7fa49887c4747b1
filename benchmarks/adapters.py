"""Eight adapters mixed in one batch beside one adapter for all: tokens per second of the engine.

    python -m benchmarks.adapters [--quick] [--json FILE] [--adapters 8] [--requests 32]

LoRA of rank 8 on all seven linear layers of the 5-million-parameter model, random weights, 100-token prompts, 64 new
tokens. The base alone is shown besides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.sides import model as bench_model
from benchmarks.sides.engine import EngineInProcess
from benchmarks.sides.rounds import Row, machine, measure
from inference_svc.engines.base import AdapterSpec
from inference_svc.generation import AdapterKey

ENOUGH = 0.7


class Mixed(EngineInProcess):
    """The engine, with an adapter for each request in turn."""

    folders: tuple[Path, ...] = ()

    async def start(self) -> None:
        """Load the model and the adapters."""
        await super().start()
        self.name = f"{len(self.folders)} adapters" if self.folders else "base"
        for folder in self.folders:
            await self._engine.load_adapter(AdapterSpec(AdapterKey(folder.name), folder))

    def adapter(self, number: int) -> AdapterKey | None:
        """See `EngineInProcess.adapter`."""
        return AdapterKey(self.folders[number % len(self.folders)].name) if self.folders else None


def make_adapters(base: Path, target: Path, count: int) -> tuple[Path, ...]:
    """Random LoRA folders for a model."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = []
    for number in range(count):
        torch.manual_seed(number)
        config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
        adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        folders.append(target / f"adapter-{number}")
        adapted.save_pretrained(folders[-1])
    return tuple(folders)


async def run(folder: Path, folders: tuple[Path, ...], requests: int, rounds: int) -> Row:
    """One line."""
    side = Mixed(folder, 64, requests)
    side.folders = folders
    await side.start()
    draw = bench_model.Prompts(folder, 100)
    try:
        return await measure(side, [draw.batch(requests, number) for number in range(rounds + 1)])
    finally:
        await side.stop()


def main() -> int:
    """Run it; 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", type=int, default=8, help="how many are mixed; default: %(default)s")
    parser.add_argument("--requests", type=int, default=32, help="requests at once; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="one round each")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        folder = bench_model.make_random(Path(scratch) / "model")
        folders = make_adapters(folder, Path(scratch), arguments.adapters)
        rows = []
        for some in ((), folders[:1], folders):
            rows.append(asyncio.run(run(folder, some, arguments.requests, 1 if arguments.quick else 5)))
            print(f"{rows[-1].side:12} {rows[-1].tokens_per_s:8.0f} tokens/s, {rows[-1].failures} failures", flush=True)
    share = rows[2].tokens_per_s / rows[1].tokens_per_s
    print(f"{'met    ' if share >= ENOUGH else 'NOT MET'} {share:.2f} of one adapter's: at least {ENOUGH}")
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
