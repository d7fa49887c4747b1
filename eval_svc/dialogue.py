"""Plays one scenario against one target: turn by turn, with branches, retries, and what is already answered.

It knows no concurrency, no storage beyond the `record` it calls, and no statistics.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from eval_svc import seeds
from eval_svc.customer import PlayedCustomer
from eval_svc.outcome import outcome_of
from eval_svc.scenario import Scenario, Turn
from eval_svc.scoring import Scoring, score_played
from eval_svc.target import Target, TurnRequest
from eval_svc.transcript import Exchange, Failure, Message, Reply, Transcript, Unit

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Play:
    """How dialogues are played.

    Attributes:
        system: the system prompt said to the target; empty: the target's own.
        max_output_tokens: bound of a reply.
        temperature: 0 is greedy.
        turn_timeout_s: a customer waits no longer for a complete reply.
        retries: how often a call is made again that failed for infrastructure reasons.
        backoff_s: pause before the first retry; it doubles with each.
    """

    system: str = ""
    max_output_tokens: int = 256
    temperature: float = 0.0
    turn_timeout_s: float = 60.0
    retries: int = 3
    backoff_s: float = 0.5


Record = Callable[[Exchange], Awaitable[None]]
"""Called with each answered turn before the next one is asked, so that a crash loses at most one reply per dialogue."""


class Dialogue:
    """One scenario as it is played.

    Args:
        run_seed: seed of the run; both sides of a comparison share it.
        known: turns that an earlier attempt already got answered; they are not asked again.
        in_flight: how many dialogues run at present, for the latency record.
        customer: the model that plays the customer of a simulated scenario.
    """

    def __init__(
        self,
        scenario: Scenario,
        unit: Unit,
        target: Target,
        play: Play,
        scoring: Scoring,
        *,
        run_seed: int,
        conversation: str,
        record: Record,
        known: Mapping[int, Exchange],
        in_flight: Callable[[], int] = lambda: 1,
        customer: Target | None = None,
    ) -> None:
        self.scenario = scenario
        self.unit = unit
        self.target = target
        self.play = play
        self.scoring = scoring
        # without the arm: candidate and baseline meet the same customer with the same luck
        self.seed = seeds.derive(run_seed, scenario.id, unit.trial, unit.variant)
        self.conversation = conversation
        self.record = record
        self.known = known
        self.in_flight = in_flight
        self.customer = customer
        self.exchanges: list[Exchange] = []
        self.stopped = False

    async def run(self) -> Transcript:
        """Play to the end, to a handover, to a failure, or to a turn with `on_fail: stop`."""
        if self.scenario.simulated:
            return await self._simulate()
        for index, turn in enumerate(self.scenario.turns):
            if self.stopped or not self._due(turn):
                self.exchanges.append(Exchange(index, turn.user, None))
                continue
            exchange = await self._exchange(index, self.scenario.wording(index, self.unit.variant))
            self.exchanges.append(exchange)
            if _ends(exchange.reply) or (turn.stop_on_fail and self._failed_last()):
                self.stopped = True
        return self._transcript()

    async def _simulate(self) -> Transcript:
        """Let the played customer speak until it is done, is handed over, or has had its turns."""
        assert self.customer is not None
        played = PlayedCustomer(self.customer, self.scenario, self.seed, self.play.turn_timeout_s)
        for index in range(self.scenario.max_turns):
            before = self.known.get(index)
            words = before.user if before is not None else await played.next(self.exchanges)
            if isinstance(words, Failure):
                self.exchanges.append(Exchange(index, "", Reply(failure=words)))
                break
            if words is None:
                break
            self.exchanges.append(await self._exchange(index, words))
            if _ends(self.exchanges[-1].reply):
                break
        return self._transcript()

    async def _exchange(self, index: int, user: str) -> Exchange:
        before = self.known.get(index)
        if before is not None and before.user == user and before.reply is not None:
            return before
        request = self._request(index, user)
        reply = await self._ask(request)
        exchange = Exchange(index, user, reply)
        if reply.failure is None or not reply.failure.infra:
            await self.record(exchange)
        return exchange

    def _request(self, index: int, user: str) -> TurnRequest:
        messages = list(self.scenario.history)
        for exchange in self.exchanges:
            if exchange.reply is not None:
                messages += [Message("user", exchange.user), Message("assistant", exchange.reply.text)]
        messages.append(Message("user", user))
        return TurnRequest(
            conversation=self.conversation,
            system=self.play.system,
            facts=self.scenario.memory.lines(),
            messages=tuple(messages),
            seed=seeds.derive(self.seed, index),
            max_output_tokens=self.play.max_output_tokens,
            temperature=self.play.temperature,
            timeout_s=self.play.turn_timeout_s,
        )

    async def _ask(self, request: TurnRequest) -> Reply:
        pause = self.play.backoff_s
        for attempt in range(self.play.retries + 1):
            concurrency = self.in_flight()
            reply = replace(await self._call(request), retries=attempt, concurrency=concurrency)
            if reply.failure is None or not reply.failure.infra or attempt == self.play.retries:
                break
            await asyncio.sleep(min(reply.failure.retry_after_s or pause, 30.0))
            pause *= 2
        return reply

    async def _call(self, request: TurnRequest) -> Reply:
        try:
            async with asyncio.timeout(request.timeout_s + 5):
                return await self.target.reply(request)
        except TimeoutError:
            # a target keeps its own deadline; this is for one that does not come back from it
            detail = f"no reply within {request.timeout_s:.0f} s"
            return Reply(failure=Failure("timeout", "DEADLINE_EXCEEDED", detail), total_ms=request.timeout_s * 1000)
        except Exception as error:
            # a defect in a client must not pass for the agent's, nor take the other dialogues down with it
            log.exception("the client of the target broke in %s", request.conversation)
            return Reply(failure=Failure("evaluator", type(error).__name__, str(error)[:500]))

    def _due(self, turn: Turn) -> bool:
        if turn.matched is None and turn.not_matched is None:
            return True
        seen = self._seen()
        return (turn.matched is None or turn.matched in seen) and (
            turn.not_matched is None or turn.not_matched not in seen
        )

    def _seen(self) -> set[str]:
        """The outcome so far, and the ids of all checks that passed."""
        transcript = self._transcript()
        replies = [reply for _, reply in transcript.played]
        passed = {
            check.id
            for score in score_played(self.scenario, transcript, self.scoring)
            for check in score.checks
            if check.verdict == "pass"
        }
        return passed | ({outcome_of(replies)} if replies else set())

    def _failed_last(self) -> bool:
        scores = score_played(self.scenario, self._transcript(), self.scoring)
        return bool(scores) and scores[-1].passed is False

    def _transcript(self) -> Transcript:
        return Transcript(
            unit=self.unit,
            seed=self.seed,
            system=self.play.system,
            history=self.scenario.history,
            exchanges=tuple(self.exchanges),
            stopped=self.stopped,
        )


def opening(scenario: Scenario, play: Play, seed: int, conversation: str) -> TurnRequest:
    """The first turn of a scenario, asked by itself."""
    return TurnRequest(
        conversation=conversation,
        system=play.system,
        facts=scenario.memory.lines(),
        messages=(*scenario.history, Message("user", scenario.turns[0].user)),
        seed=seeds.derive(seed, scenario.id, conversation),
        max_output_tokens=play.max_output_tokens,
        temperature=play.temperature,
        timeout_s=play.turn_timeout_s,
    )


def _ends(reply: Reply | None) -> bool:
    """After a handover a person goes on; after a failure or an empty reply there is nothing to answer."""
    return reply is not None and (reply.handed_over or reply.incomplete)
