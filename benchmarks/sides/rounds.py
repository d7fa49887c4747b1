"""Rounds of requests against a side, and what they showed."""

from __future__ import annotations

import asyncio
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.sides.base import Side
from benchmarks.sides.wire import Heard, WiredSide


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
class Seen:
    """What the requests of one size showed; times in seconds."""

    speeds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    failures: int = 0
    rss: int = 0


async def one(side: Side, prompt: str, seen: Seen) -> int:
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


def read(side: WiredSide, heard: Heard, seen: Seen) -> int:
    """What `one` does, from an answer that has been written down."""
    try:
        deliveries = side.tokens(heard)
    except Exception as error:
        seen.failures += 1
        print(f"  {side.name}: {type(error).__name__}: {error}", file=sys.stderr)
        return 0
    last = heard.begun
    for number, (moment, _) in enumerate(deliveries):
        (seen.gaps if number else seen.first).append(moment - last)
        last = moment
    tokens = sum(count for _, count in deliveries)
    seen.failures += tokens != side.max_new
    return tokens


async def play(side: Side, batch: Sequence[str], seen: Seen) -> None:
    """One round: a batch at once. A server's answers are read when all have come."""
    begun = time.perf_counter()
    if isinstance(side, WiredSide):
        # Nothing else is to be done here meanwhile, so this thread may as well wait: another one would cost more.
        heard = side.wire().send([side.asked(prompt) for prompt in batch])
        seconds = time.perf_counter() - begun
        tokens = [read(side, answer, seen) for answer in heard]
    else:
        tokens = await asyncio.gather(*(one(side, prompt, seen) for prompt in batch))
        seconds = time.perf_counter() - begun
    seen.speeds.append(sum(tokens) / seconds)
    seen.rss = max(seen.rss, side.rss_bytes())


def row(name: str, requests: int, seen: Seen) -> Row:
    """What was seen, as a line of the table."""
    return Row(
        name,
        requests,
        round(statistics.median(seen.speeds), 1),
        round(percentile(seen.first, 50) * 1000, 2),
        round(percentile(seen.first, 95) * 1000, 2),
        round(percentile(seen.gaps, 95) * 1000, 2),
        seen.failures,
        round(seen.rss / 2**20, 1),
    )


async def measure(side: Side, batches: Sequence[Sequence[str]]) -> Row:
    """One round per batch, each batch at once; the first one only warms up."""
    seen = Seen()
    await play(side, batches[0], Seen())
    for batch in batches[1:]:
        await play(side, batch, seen)
    return row(side.name, len(batches[0]), seen)


def percentile(values: list[float], share: float) -> float:
    """Nearest-rank percentile; 0 of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] if ordered else 0.0


def machine() -> str:
    """Where and on what this ran."""
    root = Path(__file__).parents[2]
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=root
        )
        known = commit.stdout.strip() or "unknown"
    except OSError:  # no git here
        known = "unknown"
    return f"commit {known}, {cores()} cores, {_processor()}, Python {platform.python_version()}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
