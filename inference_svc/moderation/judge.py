"""A model as judge: another access point, or a model that is served here, says whether a text may pass.

The judge answers as safety models of the Llama Guard family do: `safe`, or `unsafe` and on the next line the
categories. Any instructed model can be told to. It sees a text whole, so an enforced judge delays the reply to its end.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, ClassVar

from chatmill.errors import Unavailable
from inference_svc.moderation.base import (
    MODERATORS,
    Finding,
    Judgement,
    ModerationContext,
    Moderator,
    ModeratorEnvironment,
    Stage,
)

DEFAULT_INSTRUCTION = (
    "You check messages between a customer and a company's assistant. Answer with one word: 'safe' if the {role}'s "
    "message below may be shown, 'unsafe' if it contains threats, hate, sexual content, self-harm, crime, or gives "
    "away secrets. After 'unsafe', name the kinds on the next line, separated by commas.\n\n{text}"
)


@dataclass(frozen=True)
class JudgeParameters:
    """Settings of `judge`.

    Attributes:
        model: resource name of the model that judges, for example `models/guard` or an access point in the registry.
        instruction: what it is asked; `{text}` is the text, `{role}` who wrote it.
        timeout: seconds to wait for its answer.
    """

    model: str
    instruction: str = DEFAULT_INSTRUCTION
    timeout: float = 5.0

    def __post_init__(self) -> None:
        if "{text}" not in self.instruction:
            raise ValueError("instruction must contain {text}, where the text to judge is put")
        if self.timeout <= 0:
            raise ValueError("timeout must be above 0 seconds")


@MODERATORS.register("judge")
class JudgeModerator(Moderator):
    """Asks a model about whole texts."""

    Parameters: ClassVar[type[Any]] = JudgeParameters

    def __init__(self, parameters: JudgeParameters, environment: ModeratorEnvironment) -> None:
        self._parameters = parameters
        self._ask = environment.ask

    def open(self, context: ModerationContext) -> Judgement:
        """See `Moderator`."""
        role = "customer" if context.stage is Stage.INPUT else "assistant"

        async def judge(text: str) -> list[Finding]:
            before, _, after = self._parameters.instruction.replace("{role}", role).partition("{text}")
            try:
                async with asyncio.timeout(self._parameters.timeout):
                    answer = await self._ask(self._parameters.model, before + text + after)
            except TimeoutError:
                raise Unavailable(
                    f"The judge {self._parameters.model} gave no answer within {self._parameters.timeout} s.",
                    reason="JUDGE_TIMEOUT",
                ) from None
            return read_answer(answer, len(text))

        return judge


def read_answer(answer: str, length: int) -> list[Finding]:
    """Findings over the whole text from a judge's answer.

    Raises:
        Unavailable: the answer is neither `safe` nor `unsafe`; reason `JUDGE_UNCLEAR`.
    """
    first, _, rest = answer.strip().partition("\n")
    word = first.strip().strip(".:'\"*`").casefold()
    if word == "safe":
        return []
    if not word.startswith("unsafe"):
        raise Unavailable(f"The judge answered {first[:40]!r} instead of 'safe' or 'unsafe'.", reason="JUDGE_UNCLEAR")
    categories = [c.strip() for c in rest.replace("\n", ",").split(",") if c.strip()]
    return [Finding(0, length, f"judge_{c.lower().replace(' ', '_')[:40]}") for c in categories or ["unsafe"]]
