"""How fast an agent answers one customer at a time: a pass of its own after the run, warmed up.

Replies of a run that holds many conversations at once wait for each other; their times say how the endpoint bears load,
not how long a customer waits. This pass asks first turns again, one after the other, both sides in turn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from eval_svc.dialogue import Play, opening
from eval_svc.scenario import Scenario
from eval_svc.target import Target

Arm = Literal["candidate", "baseline"]

WARM_UP = 2
"""Replies of each side that are asked for first and not counted."""

GIVE_UP = 3
"""After so many failures of a side in a row the rest of it is left out."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Times of one reply that was asked for by itself, in milliseconds; None if it failed."""

    arm: Arm
    number: int
    first_token_ms: float | None
    total_ms: float | None


async def time_replies(
    scenarios: Sequence[Scenario],
    targets: Mapping[Arm, Target],
    plays: Mapping[Arm, Play],
    count: int,
    *,
    seed: int,
    run_id: str,
    done: Sequence[Timed],
    keep: Callable[[Timed], Awaitable[None]],
    stop: asyncio.Event,
) -> None:
    """Time `count` replies of each side.

    Args:
        scenarios: their first turns are asked, in this order, again from the beginning if there are too few.
        plays: how each side is asked.
        done: times of an earlier attempt; those replies are not asked for again.
        keep: called with each new one.
        stop: set it to end the pass.
    """
    asked = [s for s in scenarios if not s.simulated]
    there = {(t.arm, t.number) for t in done}
    failures: dict[Arm, int] = dict.fromkeys(targets, 0)
    todo = [(n, arm) for n in range(count) for arm in targets if (arm, n) not in there]
    if not asked or not todo:
        return
    for arm in dict.fromkeys(arm for _, arm in todo):
        for number in range(WARM_UP):
            if stop.is_set():
                return
            scenario = asked[-1 - number % len(asked)]
            await targets[arm].reply(opening(scenario, plays[arm], seed, f"{run_id}/warm-up/{arm}/{number}"))
    for number, arm in todo:
        if stop.is_set():
            return
        if failures[arm] >= GIVE_UP:
            continue
        request = opening(asked[number % len(asked)], plays[arm], seed, f"{run_id}/latency/{arm}/{number}")
        reply = await targets[arm].reply(request)
        failed = reply.failure is not None
        failures[arm] = failures[arm] + 1 if failed else 0
        await keep(Timed(arm, number, None if failed else reply.first_token_ms, None if failed else reply.total_ms))
