"""The judge as a model behind an access point, asked without history and at temperature 0.

Judging is paid for like playing, so answers are kept: a run that is taken up, or scored again, asks only what has no
answer yet.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass, field
from typing import Protocol

from chatmill.errors import Unavailable
from eval_svc.target import Target, TurnRequest
from eval_svc.transcript import Message

MAX_JUDGE_TOKENS = 512
LONGEST_PAUSE_S = 30.0


class Answers(Protocol):
    """Where the answers of a judge, or of a played customer, are kept."""

    def find(self, key: str) -> str | None:
        """The answer under this key, or None."""

    def keep(self, key: str, answer: str) -> None:
        """Keep an answer; durable when it returns."""


@dataclass(slots=True)
class Forgetful:
    """Keeps answers as long as it lives."""

    known: dict[str, str] = field(default_factory=dict)

    def find(self, key: str) -> str | None:
        """See `Answers`."""
        return self.known.get(key)

    def keep(self, key: str, answer: str) -> None:
        """See `Answers`."""
        self.known[key] = answer


@dataclass(frozen=True, slots=True)
class TargetJudge:
    """Asks a target.

    Attributes:
        identity: who judges, down to the revision: another judge's answers are not this one's.
        answers: what it has said already; a question with the same seed is not asked again.
        timeout_s: a judge that takes longer leaves the check unscored.
        retries: how often a call is made again that failed for infrastructure reasons.
        backoff_s: pause before the first retry, where the endpoint names none; it doubles with each.
    """

    target: Target
    identity: str = ""
    answers: Answers = field(default_factory=Forgetful)
    timeout_s: float = 120.0
    retries: int = 3
    backoff_s: float = 0.5

    async def ask(self, prompt: str, seed: int) -> str:
        """The judge's answer. Raises Unavailable if it has none to give."""
        key = hashlib.sha256("\x1f".join((self.identity, str(seed), prompt)).encode()).hexdigest()
        known = self.answers.find(key)
        if known is not None:
            return known
        answer = await self._call(prompt, seed)
        self.answers.keep(key, answer)
        return answer

    async def _call(self, prompt: str, seed: int) -> str:
        request = TurnRequest(
            conversation=f"judge/{seed}",
            system="",
            facts=(),
            messages=(Message("user", prompt),),
            seed=seed,
            max_output_tokens=MAX_JUDGE_TOKENS,
            temperature=0.0,
            timeout_s=self.timeout_s,
            agent=False,
        )
        pause = self.backoff_s
        for attempt in range(self.retries + 1):
            reply = await self.target.reply(request)
            if reply.failure is None:
                return reply.text
            if not reply.failure.infra or attempt == self.retries:
                break
            await asyncio.sleep(min(reply.failure.retry_after_s or pause, LONGEST_PAUSE_S))
            pause *= 2
        failure = reply.failure
        assert failure is not None
        raise Unavailable(f"{failure.status}: {failure.detail}")
