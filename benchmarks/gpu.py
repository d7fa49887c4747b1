"""The rows engine on a GPU, beside the same model's own forward and `transformers serve --continuous-batching`.

    python -m benchmarks.gpu [--quick] [--json FILE] [--part card,make,bf16,serve,nf4,serve-nf4] [--sides NAMES]

An 8B shape with random weights, 100-token prompts of which none begins like another, 64 new tokens, greedy. Each part
runs in a process of its own with a time limit, and every line is kept as soon as it is measured, so a part that breaks
costs only itself. Sides:

- `engine`: the rows engine in this process; `engine-wide` reads 8192 prompt tokens between two steps;
- `engine-eager`: without CUDA graphs;
- `forward`: the model's own forward in a loop, with Transformers' growing cache;
- `forward-graph`: the same forward over the engine's store, a static cache, replayed as CUDA graphs;
- `lean`, `lean-graph`: the engine's lean forward in a loop, without and with graphs;
- `transformers-serve-cb`: that server on loopback, at its own settings.

`step_ms` is the time between two tokens of a request, the median over requests; at `engine` it contains what is read of
other prompts meanwhile. `bandwidth` is the share of the measured copy bandwidth that a step would need to read the
weights as they are stored, embeddings excluded, and the keys and values once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.sides import decode_loops, large_model
from benchmarks.sides import model as bench_model
from benchmarks.sides.base import Side
from benchmarks.sides.gpu_report import Report, Results, position_bytes, weight_bytes
from benchmarks.sides.gpu_sides import LoadedEngine, ServeContinuous
from benchmarks.sides.rounds import machine
from chatmill.imports import import_bitsandbytes

PROMPT, NEW = 100, 64
PARTS = {"card": 60.0, "make": 90.0, "bf16": 110.0, "serve": 90.0, "nf4": 110.0, "serve-nf4": 90.0}
"""Names, in the order of what they are worth, and seconds that each may take."""
SIDES = ("forward", "engine-eager", "engine", "engine-wide", "loops")
"""In process; `loops` stands for `forward-graph`, `lean` and `lean-graph`."""
LEAST_SECONDS = 10.0
"""A part that has less left is not started."""
COPIED = 4 << 30
"""Bytes of the copy that bandwidth is measured by."""


def card(results: Results) -> None:
    """What this runs on, and how fast its memory is copied."""
    import bitsandbytes
    import torch
    import transformers

    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "bnb": bitsandbytes.__version__}
    if not torch.cuda.is_available():
        results.add(part="card", device="cpu", machine=machine(), **versions)
        return
    source = torch.randint(0, 255, (COPIED,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = []
    for _ in range(12):
        begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    speed = 2 * COPIED / statistics.median(times[2:]) / 1e6
    results.add(
        part="card", device=torch.cuda.get_device_name(), copy_gb_s=round(speed, 1), machine=machine(), **versions
    )


def make(results: Results, folder: Path, shape: str) -> None:
    """Write the model."""
    begun = time.perf_counter()
    large_model.make(folder, shape, _device())
    size = sum(file.stat().st_size for file in folder.iterdir())
    results.add(part="make", seconds=round(time.perf_counter() - begun, 1), gb=round(size / 1e9, 2), folder=str(folder))


def in_process(
    results: Results, folder: Path, precision: str, batches: Sequence[int], rounds: int, sides: Sequence[str]
) -> None:
    """Those of `sides` that are a model in this process."""
    import_bitsandbytes()
    from inference_svc.engines.rows import loading
    from inference_svc.engines.rows.parameters import RowsParameters

    begun = time.perf_counter()
    quantization: Any = {"bf16": "none", "nf4": "nf4"}[precision]
    parameters = RowsParameters(quantization=quantization, smallest_quantized_mib=0, dtype="bfloat16")
    if _device() == "cpu":
        parameters = replace(parameters, dtype="float32")
    loaded = loading.load(folder, parameters)
    results.add(
        part=precision,
        load_seconds=round(time.perf_counter() - begun, 1),
        weights_gb=round(weight_bytes(loaded.model) / 1e9, 2),
        quantisation=loaded.info.quantisation,
    )
    weights, position = weight_bytes(loaded.model), position_bytes(loaded.model.config)
    report = Report(results, precision, weights, position, prompt=PROMPT, new=NEW)
    prompts = bench_model.Prompts(folder, PROMPT)
    common = {"quantization": quantization, "dtype": parameters.dtype}
    wide = [batch for batch in batches if batch > 8]
    # What is nearest to plain PyTorch first: if a graph breaks the device's context, the rest of the process is lost.
    if "forward" in sides:
        for batch in batches:
            report.guarded(
                "forward", batch, lambda size, new: decode_loops.own_forward(loaded.model, size, PROMPT, new)
            )
    engines: list[tuple[str, Sequence[int], int, dict[str, Any]]] = [
        ("engine-eager", batches, 1, {"graphs": False}),
        ("engine", batches, rounds, {}),
        ("engine-wide", wide, rounds, {"prefill_tokens": 8192}),
    ]
    for name, sizes, times, more in engines:
        if name in sides and sizes:
            asyncio.run(_engine(report, name, sizes, prompts, times, folder, loaded, {**common, **more}))
    if "loops" in sides:
        _loops(report, batches, loaded, parameters)


def _loops(report: Report, batches: Sequence[int], loaded: Any, parameters: Any) -> None:
    """The loops without an engine; one that breaks does not keep the others from running."""
    from inference_svc.engines.rows.graphs import GraphedForward
    from inference_svc.engines.rows.steps import choose_forward

    model = loaded.model
    for name, lean in (("lean", True), ("forward", False)):
        forward, store = choose_forward(loaded, replace(parameters, lean=lean))
        graphed = GraphedForward(forward, store, capture=store.device.type == "cuda")
        sides = {"lean": forward, "lean-graph": graphed} if lean else {"forward-graph": graphed}
        for side, taken in sides.items():

            def over_store(batch: int, new: int, taken: Any = taken, store: Any = store) -> decode_loops.Timed:
                return decode_loops.over_store(taken, store, model, batch, PROMPT, new)

            for batch in batches:
                report.guarded(side, batch, over_store)
        report.note(name, graphs=graphed.captured, replays=graphed.replays)
        if lean and store.device.type == "cuda":
            _kernels(report, batches[:2], forward, store, model)
        if not lean:
            forward.detach()  # type: ignore[attr-defined]
        del forward, store, graphed, sides, taken, over_store
        gc.collect()


def _kernels(report: Report, batches: Sequence[int], forward: Any, store: Any, model: Any) -> None:
    """Where the time of a step goes; not every machine lets a profiler look."""
    try:
        for batch in batches:
            report.note("lean", requests=batch, kernels=decode_loops.kernels(forward, store, model, batch, PROMPT))
    except Exception as error:
        report.note("lean", error=f"no profile: {type(error).__name__}: {error}"[:300])


async def _engine(
    report: Report,
    name: str,
    batches: Sequence[int],
    prompts: bench_model.Prompts,
    rounds: int,
    folder: Path,
    loaded: Any,
    parameters: dict[str, Any],
) -> None:
    side = LoadedEngine(folder, NEW, max(batches), loaded, **parameters)
    side.name = name
    await side.start()
    try:
        for batch in batches:
            await _played(report, side, batch, prompts, rounds)
        forward: Any = side._engine._scheduler.forward if side._engine._scheduler else None
        report.note(name, graphs=getattr(forward, "captured", 0), replays=getattr(forward, "replays", 0))
    finally:
        await side.stop()
        gc.collect()


async def _served(results: Results, folder: Path, precision: str, batches: Sequence[int], rounds: int) -> None:
    """`transformers serve`; what its weights take is known from the part before."""
    from transformers import AutoConfig

    known = next((row["weights_gb"] for row in results.all() if row.get("part") == precision), 0.0)
    position = position_bytes(AutoConfig.from_pretrained(folder))
    report = Report(results, precision, known * 1e9, position, prompt=PROMPT, new=NEW)
    side = ServeContinuous(folder, NEW, max(batches))
    if precision == "nf4":
        side.options = ("--quantization", "bnb-4bit")
    if _device() == "cpu":
        sizes = ("--cb-block-size", "32", "--cb-num-blocks", "512", "--cb-max-batch-tokens", "512")
        side.options = (*side.options, "--device", "cpu", *sizes)
    begun = time.perf_counter()
    await side.start()
    try:
        report.note(side.name, start_seconds=round(time.perf_counter() - begun, 1))
        prompts = bench_model.Prompts(folder, PROMPT)
        for batch in batches:
            await _played(report, side, batch, prompts, rounds)
    finally:
        await side.stop()


async def _played(report: Report, side: Side, batch: int, prompts: bench_model.Prompts, rounds: int) -> None:
    """Rounds of one size; the first only warms up."""
    firsts: list[float] = []
    steps: list[float] = []
    speeds: list[float] = []
    failures = 0

    async def one(prompt: str) -> tuple[int, float, float]:
        begun = time.perf_counter()
        tokens, first, last = 0, 0.0, 0.0
        try:
            async for count in side.stream(prompt):
                last = time.perf_counter() - begun
                first = first or last
                tokens += count
        except Exception as error:
            print(f"  {side.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return tokens, first, last

    for number in range(rounds + 1):
        said = prompts.batch(batch, number)
        begun = time.perf_counter()
        seen = await asyncio.gather(*map(one, said))
        if number:
            speeds.append(sum(tokens for tokens, _, _ in seen) / (time.perf_counter() - begun))
            firsts += [first for _, first, _ in seen]
            steps += [(last - first) / (tokens - 1) for tokens, first, last in seen if tokens > 1]
            failures += sum(tokens != NEW for tokens, _, _ in seen)
    report.row(side.name, batch, statistics.median(speeds), firsts, statistics.median(steps or [0.0]), failures)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def scratch(bytes_needed: int) -> Path:
    """A folder for the model: in memory where there is room, since it is read several times."""
    memory = Path("/dev/shm")  # noqa: S108
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > bytes_needed
    return Path(tempfile.mkdtemp(prefix="bench-gpu-", dir=memory if roomy else None))


def limited(command: Sequence[str], seconds: float) -> str:
    """Run a part and all it starts; what went wrong, or nothing."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        status = process.wait(seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:g} s"
    else:
        return f"ended with {status}" if status else ""
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def inside(arguments: argparse.Namespace, results: Results) -> None:
    """One part, in the process that was started for it."""
    batches = [int(number) for number in arguments.requests.split(",")]
    rounds = 1 if arguments.quick else 2
    part, folder = arguments.part, arguments.folder
    if part == "card":
        card(results)
    elif part == "make":
        make(results, folder, arguments.shape)
    elif part in ("bf16", "nf4"):
        in_process(results, folder, part, batches, rounds, arguments.sides.split(","))
    else:
        asyncio.run(_served(results, folder, "nf4" if part.endswith("nf4") else "bf16", batches, rounds))


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round each, of 1 and 8 requests")
    parser.add_argument("--json", type=Path, help="write the figures to this file, after every part")
    parser.add_argument("--part", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--sides", default=",".join(SIDES), help="of the parts bf16 and nf4; default: %(default)s")
    parser.add_argument("--requests", help="default: 1,8,32,64, or 1,8 with --quick")
    parser.add_argument("--shape", choices=sorted(large_model.SHAPES), default="8b", help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=600.0, help="for all parts together; default: %(default)s")
    parser.add_argument("--folder", type=Path, help="where the model is or shall be; it is kept")
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    for given, known in ((arguments.part, PARTS), (arguments.sides, SIDES)):
        if unknown := set(given.split(",")) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(known)}")
    arguments.requests = arguments.requests or ("1,8" if arguments.quick else "1,8,32,64")
    if arguments.inside:
        inside(arguments, Results(arguments.lines))
        return 0
    if _device() == "cpu" and arguments.shape != "tiny":
        print("there is no CUDA device; this was not run (--shape tiny tries the program itself)")
        return 0
    folder = arguments.folder or scratch(20 << 30)
    lines = arguments.json.with_suffix(".jsonl") if arguments.json else folder / "lines.jsonl"
    lines.unlink(missing_ok=True)
    lines.touch()
    results = Results(lines)
    until = time.monotonic() + arguments.seconds
    try:
        for part in arguments.part.split(","):
            begun = time.monotonic()
            if until - begun < LEAST_SECONDS:
                results.add(ended=part, wrong="no time is left for it")
                continue
            command = [sys.executable, "-m", "benchmarks.gpu", "--inside", "--part", part, "--folder", str(folder)]
            command += ["--lines", str(lines), "--requests", arguments.requests, "--shape", arguments.shape]
            command += ["--sides", arguments.sides]
            command += ["--quick"] if arguments.quick else []
            wrong = limited(command, min(PARTS[part], until - begun))
            results.add(ended=part, seconds=round(time.monotonic() - begun, 1), **({"wrong": wrong} if wrong else {}))
            if arguments.json:
                arguments.json.write_text(json.dumps(results.all(), indent=1) + "\n", encoding="utf-8")
    finally:
        if not arguments.folder:
            shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
