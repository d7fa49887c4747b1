"""A process to be killed: runs one evaluation on a file, and writes down every call that it makes.

Usage: killed.py DATABASE CALLS PAUSE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from eval.fakes import ScriptedAgent, evaluations, spec, suite
from eval_svc.store import Store

EXPECT = [{"type": "contains_any", "value": "yes"}]
TURNS = [{"user": text, "expect": EXPECT} for text in ("one", "two", "three")]
HELD = suite(*({"schema": 1, "id": f"s{i:02}", "kind": "happy", "turns": TURNS} for i in range(16)), trials=2)


async def main(database: Path, calls: Path, pause: float) -> None:
    """Run to the end, or until killed."""

    def answer(request: Any) -> str:
        with calls.open("a") as log:
            log.write(f"{request.conversation}#{len(request.messages)}\n")
        return "yes" if request.seed % 3 else "no"

    core = evaluations(HELD, {"a": ScriptedAgent(answer, "a", pause=pause)}, Store(database))
    started = await core.start(spec(concurrency=4), "the-run")
    async for _ in core.watch(started.record.id):
        pass
    board = core.get(started.record.id).board
    assert board is not None
    sys.stdout.write(f"{board.candidate.pass_rate} {board.candidate.trials} {board.candidate.pass_hat_k}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])))
