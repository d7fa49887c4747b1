"""The judge as a model behind an access point, asked without history and at temperature 0."""

from __future__ import annotations

from dataclasses import dataclass

from chatmill.errors import Unavailable
from eval_svc.target import Target, TurnRequest
from eval_svc.transcript import Message

MAX_JUDGE_TOKENS = 512


@dataclass(frozen=True, slots=True)
class TargetJudge:
    """Asks a target.

    Attributes:
        timeout_s: a judge that takes longer leaves the check unscored.
        attempts: how often a call is made that fails for infrastructure reasons.
    """

    target: Target
    timeout_s: float = 120.0
    attempts: int = 3

    async def ask(self, prompt: str, seed: int) -> str:
        """The judge's answer. Raises Unavailable if it has none to give."""
        request = TurnRequest(
            conversation=f"judge/{seed}",
            system="",
            facts=(),
            messages=(Message("user", prompt),),
            seed=seed,
            max_output_tokens=MAX_JUDGE_TOKENS,
            temperature=0.0,
            timeout_s=self.timeout_s,
        )
        for _ in range(self.attempts):
            reply = await self.target.reply(request)
            if reply.failure is None:
                return reply.text
            if not reply.failure.infra:
                break
        failure = reply.failure
        assert failure is not None
        raise Unavailable(f"{failure.status}: {failure.detail}")
