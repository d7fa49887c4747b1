"""Ten times more requests than there is capacity for: who is served how soon, who is refused how fast, and the memory.

    python -m benchmarks.overload [--quick] [--json FILE] [--seconds 60] [--times 10]

The service runs over gRPC in a process of its own with a line of bounded time. Its capacity is measured first, by
keeping its rows full. Then requests come at `times` that rate, evenly spaced and whether or not earlier ones are done.
h2load sends all of them but what the service could serve (`sides.flood`; without it the client here sends all), and
the client here times what becomes of its own. A first token may take twice the bound of the line. Refusals are timed
by the service itself, from its log of calls; by h2load, of whose calls as many are taken for refusals, the shortest,
as the service refused; by the client here; and by a second one in a process of its own, which makes one call after the
other. All share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import itertools
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.sides import model as bench_model
from benchmarks.sides.base import Missing, python
from benchmarks.sides.chatmill_grpc import Chatmill
from benchmarks.sides.flood import Flood
from benchmarks.sides.rounds import Seen, machine, one, percentile
from chatmill.errors import ChatmillError, ResourceExhausted

ROWS = 32
BOUND = 2.0
"""Seconds that a request waits in the line at most."""
REFUSED_MS = 5.0
FLAT_MIB = 32.0
SETTINGS = (
    f"inference.max_rows={ROWS}",
    f"inference.max_queue_seconds={BOUND}",
    "inference.max_queue=256",
    # All of h2load's calls have one prompt, which must not cost less than those that the capacity is measured with.
    "inference.prefix_cache_tokens=0",
)


@dataclass(slots=True)
class Outcome:
    """What came of the requests; times in seconds."""

    sent: int = 0
    first: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    timed_out: int = 0
    served: int = 0
    failed: int = 0
    rss: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Report:
    """The figures: `served`, `refused_…`, `first_token_…` of the client here, `served_to_all` and `failed` of all."""

    capacity_per_s: float
    offered_per_s: float
    seconds: float
    served: int
    served_to_all: int
    refused_at_once: int
    refused_after_waiting: int
    failed: int
    first_token_p50_ms: float
    first_token_p95_ms: float
    flood_calls: int
    flood_refusals: int
    flood_refusal_p50_ms: float
    flood_refusal_p95_ms: float
    sender_refusal_p50_ms: float
    sender_refusal_p95_ms: float
    client_refusals: int
    client_refusal_p50_ms: float
    client_refusal_p95_ms: float
    service_refusal_p50_ms: float
    service_refusal_p95_ms: float
    rss_start_mib: float
    rss_end_mib: float


class Overloaded(Chatmill):
    """The service with a short line, which logs each call, and a second client."""

    settings = (*SETTINGS, "mesh.log_level=info", "mesh.log_format=json")

    async def watch(self, prompt: str, seconds: float) -> asyncio.subprocess.Process:
        """The second client, ready to begin; see `probe`."""
        request = self.request(prompt)
        request.spec.limits.max_queue.SetInParent()  # it waits for no place
        command = (python(), "-m", "benchmarks.sides.probe", f"127.0.0.1:{self.port}", str(seconds))
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *command, request.SerializeToString().hex(), stdin=pipe, stdout=pipe
        )
        assert process.stdout is not None
        if await process.stdout.readline() != b"ready\n":
            raise Missing(f"the second client ended with {await process.wait()}")
        return process

    def calls(self) -> list[dict[str, Any]]:
        """What the service logged of replies."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return [json.loads(line) for line in lines if "/Generate" in line and '"code"' in line]

    def served(self) -> int:
        """Replies that ended well."""
        return sum(call["code"] == "OK" for call in self.calls())

    def failures(self) -> int:
        """Replies that ended otherwise, and were neither refused nor given up by their client."""
        fine = {"OK", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED"}
        return sum(call["code"] not in fine for call in self.calls())

    def refusals(self) -> list[float]:
        """Milliseconds that the service itself took for each refusal."""
        calls = [call for call in self.calls() if call["code"] == "RESOURCE_EXHAUSTED"]
        # Those whose time in the line ran out were not refused at once.
        return [float(call["ms"]) for call in calls if f"No place became free within {BOUND:g} s" not in call["error"]]


async def capacity(side: Chatmill, draw: bench_model.Prompts, seconds: float) -> float:
    """Requests per second with all rows taken."""
    prompts = itertools.cycle(draw.batch(512, 1))
    await asyncio.gather(*(one(side, next(prompts), Seen()) for _ in range(ROWS)))
    begun = time.perf_counter()
    until, done = begun + seconds, 0

    async def keep() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await one(side, next(prompts), Seen())
            done += time.perf_counter() < until

    await asyncio.gather(*(keep() for _ in range(ROWS)))
    return done / seconds


async def ask(side: Chatmill, prompt: str, outcome: Outcome) -> None:
    """One request, whatever comes of it."""
    begun = time.perf_counter()
    spoken = False
    try:
        async for _ in side.stream(prompt):
            if not spoken:
                spoken = True
                outcome.first.append(time.perf_counter() - begun)
        outcome.served += 1
    except ResourceExhausted as error:
        if error.reason == "QUEUE_TIMEOUT":
            outcome.timed_out += 1
        else:
            outcome.refused.append(time.perf_counter() - begun)
    except ChatmillError as error:
        outcome.failed += 1
        print(f"  {type(error).__name__}: {error}", file=sys.stderr)


async def overload(side: Chatmill, prompts: list[str], rate: float, seconds: float) -> Outcome:
    """Send at a rate, and wait for what was admitted."""
    outcome = Outcome()
    tasks: set[asyncio.Task[None]] = set()
    begun = time.perf_counter()
    looked = 0.0
    while (now := time.perf_counter() - begun) < seconds:
        while outcome.sent < now * rate:
            task = asyncio.create_task(ask(side, prompts[outcome.sent % len(prompts)], outcome))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            outcome.sent += 1
        if now - looked > 1:
            looked = now
            outcome.rss.append(side.rss_bytes())
        await asyncio.sleep(0.002)
    await asyncio.gather(*tasks)
    return outcome


async def run(arguments: argparse.Namespace, folder: Path) -> Report:
    """Both halves."""
    side = Overloaded(folder, 64, ROWS)
    side.settings += tuple(arguments.set)
    client: asyncio.subprocess.Process | None = None
    flood: Flood | None = None
    await side.start()
    try:
        draw = bench_model.Prompts(folder, 100)
        prompts = draw.batch(512, 0)
        able = await capacity(side, draw, 2 if arguments.quick else 10)
        seconds = 4 if arguments.quick else arguments.seconds
        before = side.served()
        offered = able * arguments.times
        own = offered
        if Flood.there() and able < offered:
            own = able
            flood = Flood(side.port, side.request(prompts[0]), offered - own, seconds)
        else:
            print("no h2load (nghttp2-client), or nothing for it to send: the load comes from a client in Python")
        client = await side.watch(prompts[0], seconds)
        gc.freeze()  # else the collector's looks at all of torch hold the load up, and what was due comes at once
        async with asyncio.TaskGroup() as tasks:
            sent = tasks.create_task(overload(side, prompts, own, seconds))
            watched = tasks.create_task(client.communicate(b"begin\n"))
            flooding = tasks.create_task(flood.run()) if flood is not None else None
        outcome, seen = sent.result(), json.loads(watched.result()[0])
        flooded = flooding.result() if flooding is not None else []
        calls = len(flooded)
        inside = side.refusals()
        flooded = flooded[: max(0, len(inside) - len(outcome.refused) - len(seen))]
    finally:
        if client is not None and client.returncode is None:
            client.kill()
            await client.wait()
        if flood is not None:
            await flood.stop()
        await side.stop()
    settled = outcome.rss[len(outcome.rss) // 3] if outcome.rss else 0
    return Report(
        capacity_per_s=round(able, 1),
        offered_per_s=round(offered, 1),
        seconds=seconds,
        served=outcome.served,
        served_to_all=side.served() - before,
        refused_at_once=len(outcome.refused),
        refused_after_waiting=outcome.timed_out,
        failed=max(outcome.failed, side.failures()),
        first_token_p50_ms=round(percentile(outcome.first, 50) * 1000, 1),
        first_token_p95_ms=round(percentile(outcome.first, 95) * 1000, 1),
        flood_calls=calls,
        flood_refusals=len(flooded),
        flood_refusal_p50_ms=round(percentile(flooded, 50), 2),
        flood_refusal_p95_ms=round(percentile(flooded, 95), 2),
        sender_refusal_p50_ms=round(percentile(outcome.refused, 50) * 1000, 2),
        sender_refusal_p95_ms=round(percentile(outcome.refused, 95) * 1000, 2),
        client_refusals=len(seen),
        client_refusal_p50_ms=round(percentile(seen, 50), 2),
        client_refusal_p95_ms=round(percentile(seen, 95), 2),
        service_refusal_p50_ms=round(percentile(inside, 50), 2),
        service_refusal_p95_ms=round(percentile(inside, 95), 2),
        rss_start_mib=round(settled / 2**20, 1),
        rss_end_mib=round((outcome.rss[-1] if outcome.rss else 0) / 2**20, 1),
    )


def main() -> int:
    """Run it; 1 if an admitted request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long; default: %(default)s")
    parser.add_argument("--times", type=float, default=10.0, help="of the capacity; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for trying the program out")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="an option of the service")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        report = asyncio.run(run(arguments, bench_model.make_random(Path(scratch) / "model")))
    for name, value in asdict(report).items():
        print(f"{name:24} {value}")
    grown = report.rss_end_mib - report.rss_start_mib
    bars = [
        (report.first_token_p95_ms <= 2000 * BOUND, f"first token p95 at most twice the line's bound of {BOUND} s"),
        (report.service_refusal_p95_ms < REFUSED_MS, f"refusals in less than {REFUSED_MS} ms, by the service's clock"),
        (
            0 < report.client_refusal_p95_ms < REFUSED_MS,
            f"refusals in less than {REFUSED_MS} ms, by the second client's clock",
        ),
        (grown < FLAT_MIB, f"memory flat over the last two thirds ({grown:+.1f} MiB)"),
        (report.failed == 0, "nothing admitted fails"),
    ]
    if report.flood_calls:
        bars.append(
            (
                0 < report.flood_refusal_p95_ms < REFUSED_MS,
                f"refusals in less than {REFUSED_MS} ms, by h2load's clock",
            )
        )
    for enough, text in bars:
        print(f"{'met    ' if enough else 'NOT MET'} {text}")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return int(report.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
