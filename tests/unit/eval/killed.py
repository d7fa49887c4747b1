"""A process to be killed: runs one evaluation on a file, and writes down every call that it makes.

Usage: killed.py DATABASE CALLS PAUSE scripted|simulated
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Any

from eval.fakes import ScriptedAgent, evaluations, spec, suite
from eval_svc.customer import END, kept_under
from eval_svc.spec import TargetSpec
from eval_svc.store import Store

EXPECT = [{"type": "contains_any", "value": "yes"}]
TURNS = [{"user": text, "expect": EXPECT} for text in ("one", "two", "three")]
NAMES = [f"s{i:02}" for i in range(16)]
SUITES = {
    "scripted": suite(*({"schema": 1, "id": name, "kind": "happy", "turns": TURNS} for name in NAMES), trials=2),
    "simulated": suite(
        *({"schema": 1, "id": name, "kind": "simulated", "goal": "Learn it.", "max_turns": 4} for name in NAMES),
        trials=2,
    ),
}
CUSTOMER = TargetSpec("models/c")


async def main(database: Path, calls: Path, pause: float, kind: str) -> None:
    """Run to the end, or until killed."""

    def note(call: str) -> None:
        with calls.open("a") as log:
            log.write(f"{call}\n")

    def answer(request: Any) -> str:
        note(f"{request.conversation}#{len(request.messages)}")
        return "yes" if request.seed % 3 else "no"

    def play(request: Any) -> str:
        note(kept_under(f"{CUSTOMER.base_url} {CUSTOMER.model}", request))
        return f"Tell me {request.seed}" if len(request.messages) < 5 else END

    agents = {"a": ScriptedAgent(answer, "a", pause=pause), "c": ScriptedAgent(play, "c", pause=pause)}
    core = evaluations(SUITES[kind], agents, Store(database))
    started = await core.start(spec(concurrency=4, customer=CUSTOMER), "the-run")
    async for _ in core.watch(started.record.id):
        pass
    board = core.get(started.record.id).board
    assert board is not None
    said = [
        (str(t.unit), e.user, e.reply and e.reply.text)
        for t in core.store.trials(started.record.id)
        for e in t.transcript.exchanges
    ]
    digest = hashlib.sha256(repr(said).encode()).hexdigest()
    sys.stdout.write(f"{board.candidate.pass_rate} {board.candidate.trials} {board.candidate.pass_hat_k} {digest}\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4]))
