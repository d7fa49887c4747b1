"""Serving side by side: tokens per second, first token, inter-token time, failures and memory of each system.

    python -m benchmarks.generate [--quick] [--json FILE] [--sides chatmill,engine,...] [--requests 1,8,32,128]
    python -m benchmarks.generate --read FILE [FILE ...]

Each side runs in a process of its own on the same model, machine and prompts, is warmed up, and gets so many requests
at once, round after round. The sides take turns, so that what else the machine does meets all of them, and wait while
another's turn is. A turn is one round; of single requests it is ten, one after the other, since one alone would mostly
show how a process wakes up whose turn it has not been for seconds. A figure is the median of the rounds. Greedy,
100-token prompts, 64 new tokens. No prompt is used twice and all begin differently, so that no side's prefix cache
finds anything; every side gets the same ones. Every side may use all cores, and the client runs on the same ones: for
every server the same, which only notes when which bytes came, and reads them after the round.
First-token and inter-token times are what a client sees: from sending the request to the first delivery that has text,
and from each delivery to the next.

At the end the bars that these figures are measured by are shown, for the sides that were run.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.sides import model as bench_model
from benchmarks.sides.base import Missing, Side
from benchmarks.sides.rounds import Row, Seen, cores, machine, play, row

SIDES = {
    "chatmill": ("benchmarks.sides.chatmill_grpc", "Chatmill"),
    "engine": ("benchmarks.sides.engine", "EngineInProcess"),
    "forward": ("benchmarks.sides.forward", "ForwardLoop"),
    "transformers-serve-cb": ("benchmarks.sides.openai_sse", "TransformersServeContinuous"),
    "transformers-serve": ("benchmarks.sides.openai_sse", "TransformersServe"),
    "tutorial": ("benchmarks.sides.openai_sse", "Tutorial"),
    "llama.cpp": ("benchmarks.sides.openai_sse", "LlamaCpp"),
    "chatmill-aio": ("benchmarks.sides.chatmill_grpc", "ChatmillAio"),
}
ASKED_FOR = ("chatmill-aio",)
"""Sides that are only run where they are named: variants of chatmill itself."""
ROUNDS = {1: 60, 8: 6, 32: 9, 128: 3}
IN_A_ROW = {1: 10}
"""Rounds of a turn; elsewhere one."""
BARS = (
    # requests, other side, least ratio of chatmill's tokens per second to the other's
    (1, "transformers-serve", 1.1),
    (8, "transformers-serve-cb", 1.3),
    (32, "transformers-serve-cb", 2.5),
    (32, "llama.cpp", 1.3),
    (32, "engine", 0.85),
    (32, "forward", 0.6),
)
FIRST_TOKEN_MS = 3.0
"""How much later than the engine's own the first token of a single request may come."""
AT_128 = 0.85
"""Least share of the throughput at 32 that is left at 128."""


async def serve_side(name: str, folder: Path, most: int, arguments: argparse.Namespace) -> None:
    """Be one side: start, say so, and play the turns that come on standard input, each as `requests round rounds`."""
    module, cls = SIDES[name]
    draw = bench_model.Prompts(folder, arguments.prompt_tokens)
    side: Side = getattr(importlib.import_module(module), cls)(folder, arguments.tokens, most)
    try:
        try:
            await side.start()
        except (Missing, ImportError, TimeoutError) as error:
            print(json.dumps({"missing": str(error)}), flush=True)
            return
        print(json.dumps({}), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            size, first, count = map(int, line.split())
            batches = [draw.batch(size, number) for number in range(first, first + count)]
            seen = Seen()
            for batch in batches:
                await play(side, batch, seen)
            print(json.dumps(asdict(seen)), flush=True)
    finally:
        await side.stop()


class Player:
    """A side in a process of its own."""

    def __init__(self, name: str, folder: Path, sizes: list[int], arguments: argparse.Namespace) -> None:
        self.name, self.note = name, ""
        given = ["--sides", name, "--save-model", str(folder), "--apart", "--requests", str(max(sizes))]
        given += ["--tokens", str(arguments.tokens), "--prompt-tokens", str(arguments.prompt_tokens)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generate", *given],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(cores()), "TOKENIZERS_PARALLELISM": "false"},
        )
        ready = self._answer()
        if "missing" in ready:
            self.note = f"not run: {ready['missing']}"
            print(f"{name:22} {self.note}", file=sys.stderr)

    def play(self, size: int, first: int, count: int) -> Seen:
        """`count` rounds from number `first` on; empty ones, if the side is not there or broke off."""
        assert self._process.stdin is not None
        if self.note:
            return Seen()
        self._process.stdin.write(f"{size} {first} {count}\n")
        self._process.stdin.flush()
        found = self._answer()
        return Seen(**found) if not self.note else Seen()

    def stop(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries print on standard output as well.
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        self.note = "broke off"
        return {}


def run(names: list[str], folder: Path, sizes: list[int], arguments: argparse.Namespace) -> list[Row]:
    """All sides, turn by turn, so that what else the machine does meets all of them."""
    players = [Player(name, folder, sizes, arguments) for name in names]
    rows = []
    for size in sizes:
        in_a_row = 1 if arguments.quick else IN_A_ROW.get(size, 1)
        rounds = 1 if arguments.quick else ROUNDS.get(size, 3)
        seen = {name: Seen() for name in names}
        # The first turn only warms up.
        for first in range(0, rounds + in_a_row, in_a_row):
            for player in players:
                found = player.play(size, first, in_a_row)
                if first and not player.note:
                    seen[player.name] = merged(seen[player.name], found)
        for player in players:
            if player.note:
                rows.append(Row(player.name, size, note=player.note))
            else:
                rows.append(row(player.name, size, seen[player.name]))
                show(rows[-1])
    for player in players:
        player.stop()
    return rows


def merged(one: Seen, other: Seen) -> Seen:
    """What was seen in both."""
    return Seen(
        one.speeds + other.speeds,
        one.first + other.first,
        one.gaps + other.gaps,
        one.failures + other.failures,
        max(one.rss, other.rss),
    )


def show(row: Row) -> None:
    """One line of the table."""
    print(
        f"{row.side:22} {row.requests:5} {row.tokens_per_s:9.0f} {row.ttft_p50_ms:10.1f} {row.ttft_p95_ms:10.1f} "
        f"{row.inter_token_p95_ms:10.1f} {row.failures:5} {row.rss_mb:8.0f}",
        flush=True,
    )


def show_head() -> None:
    """The names of the columns."""
    print(f"{'side':20} at once  tokens/s  first p50  first p95  inter p95  fail      MiB", flush=True)


def bars(rows: Sequence[Row]) -> list[tuple[str, float, bool]]:
    """What the figures are measured by: in words, the figure, and whether it is enough."""
    ran = {(row.side, row.requests): row for row in rows if not row.note}
    found = []
    for requests, other, least in BARS:
        ours, theirs = ran.get(("chatmill", requests)), ran.get((other, requests))
        if ours and theirs and theirs.tokens_per_s:
            ratio = ours.tokens_per_s / theirs.tokens_per_s
            found.append((f"tokens/s at {requests}, of {other}'s: at least {least:g}", ratio, ratio >= least))
    ours, engine = ran.get(("chatmill", 1)), ran.get(("engine", 1))
    if ours and engine:
        later = ours.ttft_p50_ms - engine.ttft_p50_ms
        found.append((f"first token at 1, ms after the engine's: at most {FIRST_TOKEN_MS:g}", later, later <= 3.0))
    many, some = ran.get(("chatmill", 128)), ran.get(("chatmill", 32))
    if many:
        found.append(("failures at 128: none", many.failures, not many.failures))
        if some:
            share = many.tokens_per_s / some.tokens_per_s
            found.append((f"tokens/s at 128, of those at 32: at least {AT_128:g}", share, share >= AT_128))
    return found


def conclude(rows: Sequence[Row]) -> None:
    """Show the bars."""
    for text, figure, enough in bars(rows):
        print(f"{'met    ' if enough else 'NOT MET'} {figure:7.2f}  {text}")


def read(path: Path) -> list[Row]:
    """Rows of an earlier run."""
    return [Row(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def main() -> int:
    """Run the benchmark; 1 if a request failed or a side broke off."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sides",
        default=",".join(side for side in SIDES if side not in ASKED_FOR),
        help=f"which, in this order; default: all but {', '.join(ASKED_FOR)}",
    )
    parser.add_argument("--requests", default="1,8,32,128", help="requests at once; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens per request; default: %(default)s")
    parser.add_argument("--prompt-tokens", type=int, default=100, help="tokens per prompt; default: %(default)s")
    parser.add_argument("--model", type=Path, help="folder of another model; default: 5 million random parameters")
    choices = ("auto", "float32", "bfloat16")
    parser.add_argument("--dtype", choices=choices, default="auto", help="of the weights; default: the fastest")
    parser.add_argument("--save-model", type=Path, help="keep the model in this folder")
    parser.add_argument("--quick", action="store_true", help="one round each, for trying the program out")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--read", type=Path, nargs="+", help="only show the rows of these files, and the bars")
    parser.add_argument("--apart", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes, names = [int(n) for n in arguments.requests.split(",")], arguments.sides.split(",")
    unknown = set(names) - SIDES.keys()
    if unknown:
        parser.error(f"unknown sides {', '.join(sorted(unknown))}; there are {', '.join(SIDES)}")
    if arguments.apart:
        asyncio.run(serve_side(names[0], arguments.save_model, max(sizes), arguments))
        return 0
    if arguments.read:
        rows = [row for path in arguments.read for row in read(path)]
        show_head()
        for row in rows:
            show(row)
        conclude(rows)
    else:
        print(machine())
        show_head()
        with tempfile.TemporaryDirectory() as scratch:
            folder = arguments.save_model or Path(scratch) / "model"
            if arguments.model:
                bench_model.make_endless(arguments.model, folder)
            else:
                dtype = bench_model.best_dtype() if arguments.dtype == "auto" else arguments.dtype
                bench_model.make_random(folder, dtype=dtype)
                print(f"weights in {dtype} for every side")
            rows = run(names, folder, sizes, arguments)
        conclude(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")
    return int(any(row.failures or row.note == "broke off" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
