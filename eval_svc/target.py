"""What an agent under test looks like to the runner: something that answers a turn of a conversation.

Implementations live in `clients.py` (the mesh's inference service) and `openai_target.py`; tests bring a scripted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from chatmill import prompts
from eval_svc.transcript import Message, Reply

MAX_REPLY_CHARS = 65_536
"""A longer reply is cut there and counted as oversized; no chat window shows it, and scoring it would cost minutes."""


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """One turn to be answered.

    Attributes:
        conversation: opaque id, the same for all turns of a dialogue.
        system: the system prompt without facts; empty: the target's own.
        facts: what the agent may know about the customer, a fact a line.
        messages: the dialogue so far, the customer's newest words last.
        seed: for sampling.
        max_output_tokens: bound of the reply.
        temperature: 0 is greedy.
        timeout_s: after so many seconds without a complete reply the turn counts as timed out.
        agent: who answers is the agent, and may hand over to a person; a judge or a played customer has nobody to.
    """

    conversation: str
    system: str
    facts: tuple[str, ...]
    messages: tuple[Message, ...]
    seed: int
    max_output_tokens: int
    temperature: float
    timeout_s: float
    agent: bool = True

    @property
    def prompt(self) -> str:
        """System prompt and facts as one text, joined as in training and service."""
        return prompts.system_message(self.system, self.facts)


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What is known about a target.

    Attributes:
        name: what reports call it.
        model: name of the model at its endpoint.
        revision: digest of its weights, where the endpoint tells it.
        endpoint: kind of endpoint: `mesh`, `openai` or a test's own.
        priced_as: name under which token prices are looked up; empty: a model of one's own, which has no token price.
        system_prompt: what it is told in service when a request has no system message; empty where that is unknown.
    """

    name: str
    model: str
    revision: str = ""
    endpoint: str = ""
    priced_as: str = ""
    system_prompt: str = ""


class Target(Protocol):
    """An agent under test."""

    async def describe(self) -> TargetInfo:
        """What it is. Raises a ChatmillError if it can't be reached or does not know its model."""

    async def reply(self, request: TurnRequest) -> Reply:
        """The reply, with its times as seen from here. Never raises for what the endpoint does: that is a `Failure`."""
