"""Serving side by side: tokens per second, first token, inter-token time, failures and memory of each system.

    python -m benchmarks.generate [--quick] [--json FILE] [--sides chatmill,engine,...] [--requests 1,8,32,128]

Each side is started in turn on the same model, machine and prompts, warmed up, and given so many requests at once, over
and over; a figure is the median of the rounds. Greedy, 100-token prompts that begin differently, 64 new tokens. The
client runs on the same cores as the server, for every side alike. First-token and inter-token times are what a client
sees: from sending the request to the first delivery that has text, and from each delivery to the next.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import model as bench_model
from benchmarks.sides.base import Missing, Side

SIDES = {
    "chatmill": ("benchmarks.sides.chatmill_grpc", "Chatmill"),
    "engine": ("benchmarks.sides.engine", "EngineInProcess"),
    "forward": ("benchmarks.sides.forward", "ForwardLoop"),
    "transformers-serve-cb": ("benchmarks.sides.openai_sse", "TransformersServeContinuous"),
    "transformers-serve": ("benchmarks.sides.openai_sse", "TransformersServe"),
    "tutorial": ("benchmarks.sides.openai_sse", "Tutorial"),
    "llama.cpp": ("benchmarks.sides.openai_sse", "LlamaCpp"),
}
ROUNDS = {1: 12, 8: 6, 32: 5, 128: 3}


@dataclass(slots=True)
class Row:
    """A line of the table; times in milliseconds, memory in MiB."""

    side: str
    requests: int
    tokens_per_s: float = 0.0
    ttft_p50_ms: float = 0.0
    ttft_p95_ms: float = 0.0
    inter_token_p95_ms: float = 0.0
    failures: int = 0
    rss_mb: float = 0.0
    note: str = ""


@dataclass(slots=True)
class _Seen:
    """What the requests of one size showed."""

    speeds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: int = 0


async def one(side: Side, prompt: str, seen: _Seen) -> int:
    """One request; its tokens."""
    begun = last = time.perf_counter()
    tokens = 0
    try:
        async for count in side.stream(prompt):
            now = time.perf_counter()
            if not tokens:
                seen.first.append(now - begun)
            elif count > 0:
                seen.gaps.append(now - last)
            last = now
            tokens += count
    except Exception as error:
        seen.failures += 1
        print(f"  {side.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return tokens
    seen.failures += tokens != side.max_new
    return tokens


async def measure(side: Side, prompts: list[str], requests: int, rounds: int) -> Row:
    """So many requests at once, so many times over."""
    seen, peak, used = _Seen(), 0, 0
    await asyncio.gather(*(one(side, p, _Seen()) for p in prompts[:requests]))
    for _ in range(rounds):
        batch = [prompts[(used + n) % len(prompts)] for n in range(requests)]
        used += requests
        begun = time.perf_counter()
        tokens = await asyncio.gather(*(one(side, prompt, seen) for prompt in batch))
        seen.speeds.append(sum(tokens) / (time.perf_counter() - begun))
        peak = max(peak, side.rss_bytes())
    return Row(
        side.name,
        requests,
        round(statistics.median(seen.speeds), 1),
        round(percentile(seen.first, 50) * 1000, 2),
        round(percentile(seen.first, 95) * 1000, 2),
        round(percentile(seen.gaps, 95) * 1000, 2),
        seen.failures,
        round(peak / 2**20, 1),
    )


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else 0.0


async def run_side(
    name: str, folder: Path, prompts: list[str], sizes: list[int], arguments: argparse.Namespace
) -> list[Row]:
    """All sizes of one side."""
    module, cls = SIDES[name]
    try:
        side: Side = getattr(importlib.import_module(module), cls)(folder, arguments.tokens, max(sizes))
        await side.start()
    except (Missing, ImportError, TimeoutError) as error:
        print(f"{name:22} not run: {error}", file=sys.stderr)
        return [Row(name, n, note=f"not run: {error}") for n in sizes]
    rows = []
    try:
        for size in sizes:
            rounds = 1 if arguments.quick else ROUNDS.get(size, 3)
            rows.append(await measure(side, prompts, size, rounds))
            show(rows[-1])
    finally:
        await side.stop()
        del side
        gc.collect()
    return rows


def show(row: Row) -> None:
    """One line of the table."""
    print(
        f"{row.side:22} {row.requests:5} {row.tokens_per_s:9.0f} {row.ttft_p50_ms:10.1f} {row.ttft_p95_ms:10.1f} "
        f"{row.inter_token_p95_ms:10.1f} {row.failures:5} {row.rss_mb:8.0f}",
        flush=True,
    )


def machine() -> str:
    """Where and on what this ran."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    known = commit.stdout.strip() or "unknown"
    return f"commit {known}, {os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"


def main() -> int:
    """Run the benchmark; 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default=",".join(SIDES), help="which, in this order; default: all")
    parser.add_argument("--requests", default="1,8,32,128", help="requests at once; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request; default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=100, help="tokens per prompt; default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of another model; default: 5 million random parameters")
    parser.add_argument("--save-model", type=Path, help="keep the model in this folder, for converting it to GGUF")
    parser.add_argument("--quick", action="store_true", help="one round each, for trying the program out")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    sizes, names = [int(n) for n in arguments.requests.split(",")], arguments.sides.split(",")
    unknown = set(names) - SIDES.keys()
    if unknown:
        parser.error(f"unknown sides {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.save_model or Path(scratch) / "model"
        if arguments.model:
            bench_model.make_endless(arguments.model, folder)
        else:
            bench_model.make_random(folder)
        prompts = bench_model.prompts(folder, max(64, max(sizes)), arguments.prompt_tokens)
        print(f"{machine()}\n{'side':20} at once  tokens/s  first p50  first p95  inter p95  fail      MiB")
        rows = [row for name in names for row in asyncio.run(run_side(name, folder, prompts, sizes, arguments))]
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return int(any(row.failures for row in rows))


if __name__ == "__main__":
    sys.exit(main())
