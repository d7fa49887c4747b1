"""A model of 0.4 billion random parameters in bfloat16 and in NF4: memory, and tokens per second of one request.

    python -m benchmarks.quantization [--quick] [--json FILE] [--model FOLDER]

24 Qwen2-shaped layers of width 1024 with a vocabulary of 4096: nearly all weights are in the layers that are
quantised. A model with a large vocabulary saves less, since embeddings stay as they are. Without quantisation the
weights are bfloat16 on any processor; what is not quantised of the other sides has the precision that the engine
chooses. Each precision runs in a process of its own, in turn, three times; figures are medians. `weights_mib` is what
the weights take, `rss_mib` the whole process, Python and libraries included. `--model` takes a model of yours instead,
however small, in the precision that the engine chooses; there is no bar for it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, cast, get_args

from benchmarks.sides import model as bench_model
from benchmarks.sides.engine import EngineInProcess
from benchmarks.sides.rounds import cores, machine, measure

Precision = Literal["none", "nf4", "int8"]
TOKENS = 48
LEAST_SPEED, MOST_MEMORY = 3.0, 0.35


def make(folder: Path) -> Path:
    """The model, in bfloat16."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    bench_model.make_random(folder)
    config = Qwen2Config(
        vocab_size=bench_model.VOCABULARY,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        num_key_value_heads=16,
        max_position_embeddings=1024,
        eos_token_id=None,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    return folder


async def one(folder: Path, precision: Precision, rounds: int, *, chosen: bool) -> dict[str, float]:
    """The figures of one precision."""
    side = EngineInProcess(folder, TOKENS, 1)
    side.quantization = precision
    side.dtype = "bfloat16" if precision == "none" and not chosen else "auto"
    await side.start()
    draw = bench_model.Prompts(folder, 16)
    try:
        row = await measure(side, [draw.batch(1, number) for number in range(rounds + 1)])
        assert side.info.quantisation == precision
        return {
            "tokens_per_s": row.tokens_per_s,
            "weights_mib": round(side.info.memory_bytes / 2**20, 1),
            "rss_mib": row.rss_mb,
            "failures": row.failures,
        }
    finally:
        await side.stop()


def _apart(folder: Path, precision: str, arguments: argparse.Namespace) -> dict[str, float]:
    """`one` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.quantization", "--folder", str(folder), "--precisions", precision]
    command += [*(["--quick"] if arguments.quick else []), *(["--model", str(folder)] if arguments.model else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores())}
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    figures: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return figures


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round each")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--precisions", default="none,nf4,int8", help="default: %(default)s")
    parser.add_argument("--model", type=Path, help="a model of yours instead of the random one")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    rounds = 1 if arguments.quick else 3
    if arguments.folder:
        precision = arguments.precisions
        assert precision in get_args(Precision)
        chosen = arguments.model is not None
        print(json.dumps(asyncio.run(one(arguments.folder, cast(Precision, precision), rounds, chosen=chosen))))
        return 0
    print(machine())
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        folder = bench_model.make_endless(arguments.model, folder) if arguments.model else make(folder)
        names = arguments.precisions.split(",")
        turns = names * (1 if arguments.quick else 3)
        runs = [(name, _apart(folder, name, arguments)) for name in turns]
    for name in names:
        of = [figures for precision, figures in runs if precision == name]
        found[name] = {"precision": name} | {key: statistics.median(run[key] for run in of) for key in of[0]}
        print(
            f"{name:6} {found[name]['tokens_per_s']:7.1f} tokens/s  weights {found[name]['weights_mib']:6.0f} MiB"
            f"  process {found[name]['rss_mib']:6.0f} MiB",
            flush=True,
        )
    if "none" in found and "nf4" in found and not arguments.model:
        speed = found["nf4"]["tokens_per_s"] / found["none"]["tokens_per_s"]
        memory = found["nf4"]["weights_mib"] / found["none"]["weights_mib"]
        print(
            f"{'met    ' if speed >= LEAST_SPEED else 'NOT MET'} {speed:.2f} of bf16's tokens/s: at least {LEAST_SPEED}"
        )
        print(
            f"{'met    ' if memory <= MOST_MEMORY else 'NOT MET'} {memory:.2f} of bf16's weights: at most {MOST_MEMORY}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(list(found.values()), indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
