"""What was said: messages, replies with their timings, and whole dialogues, as plain data.

The words "user" and "assistant" are the roles of the conversation. This module knows neither scenarios nor scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]

HANDOVER_TOOL = "transfer_to_human"
"""The tool call by which an agent passes the customer to a person, everywhere in Chatmill."""

FailureKind = Literal[
    "timeout", "stream_broken", "oversized", "unreachable", "rate_limited", "unauthenticated", "evaluator"
]
INFRA_KINDS: frozenset[FailureKind] = frozenset(("unreachable", "rate_limited", "unauthenticated", "evaluator"))
"""Failures that say nothing about the agent; they are counted apart and excluded from every score."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the history that a model is given."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class ToolCall:
    """An action that the model asked for."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no complete reply.

    Attributes:
        kind: whose fault it is follows from it, see `INFRA_KINDS`.
        status: name of the gRPC status code, or `HTTP 503` and the like.
        detail: the message of the other side, shortened.
        retry_after_s: when the other side asked to be called again, if it did.
    """

    kind: FailureKind
    status: str
    detail: str
    retry_after_s: float | None = None

    @property
    def infra(self) -> bool:
        """True if the evaluator or the network failed, not the agent."""
        return self.kind in INFRA_KINDS


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one request.

    Attributes:
        text: all text received, without tool calls; holds what had arrived when the reply failed.
        tool_calls: actions that the model asked for, the handover among them.
        handoff_reason: why a person must take over, or None if none was asked for.
        finish_reason: `stop`, `length`, `tool_calls`, `handoff`, `content_filter`, ...; empty if the reply failed.
        started_at: seconds since the epoch at which the request was sent.
        first_token_ms: from sending the request to the first text or tool call; None if none came.
        total_ms: from sending the request to the end.
        tokens_in, tokens_out: as the endpoint counted them; None if it did not.
        retries: how many attempts failed for infrastructure reasons before this one.
        cut_messages: how many of the oldest messages the endpoint left out, because they did not fit.
        concurrency: conversations in flight when this one was sent; latency means little without it.
        failure: why the reply is not complete, or None.
    """

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    handoff_reason: str | None = None
    finish_reason: str = ""
    started_at: float = 0.0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    tokens_in: int | None = None
    tokens_out: int | None = None
    retries: int = 0
    concurrency: int = 1
    cut_messages: int = 0
    failure: Failure | None = None

    @property
    def handed_over(self) -> bool:
        """True if the reply passes the customer to a person."""
        return self.handoff_reason is not None or any(call.name == HANDOVER_TOOL for call in self.tool_calls)

    @property
    def incomplete(self) -> bool:
        """True if it failed, or holds nothing at all: what it lacks then says nothing about what the agent knows."""
        return self.failure is not None or not (self.text.strip() or self.tool_calls or self.handed_over)


@dataclass(frozen=True, slots=True)
class Exchange:
    """One customer turn and the reply to it.

    Attributes:
        index: which turn of the scenario it is, from 0.
        user: the customer's words as sent.
        reply: None if the turn was skipped by its `when`, and so is not applicable.
    """

    index: int
    user: str
    reply: Reply | None

    @property
    def skipped(self) -> bool:
        """True if the turn was not played."""
        return self.reply is None


@dataclass(frozen=True, slots=True)
class Unit:
    """The unit of work, and the key under which its results are kept and resumed."""

    arm: Literal["candidate", "baseline"]
    scenario: str
    trial: int
    variant: int

    def __str__(self) -> str:
        return f"{self.arm}/{self.scenario}/trial {self.trial}/variant {self.variant}"


@dataclass(frozen=True, slots=True)
class Transcript:
    """A dialogue as it was played.

    Attributes:
        system: the system prompt as sent, memory included; empty if none was.
        history: messages before the first turn.
        exchanges: in order; turns after a stop are absent.
        stopped: a turn with `on_fail: stop` failed, so the rest was not played.
    """

    unit: Unit
    seed: int
    system: str
    history: tuple[Message, ...]
    exchanges: tuple[Exchange, ...]
    stopped: bool = False

    @property
    def played(self) -> tuple[tuple[Exchange, Reply], ...]:
        """The turns that were played, each with its reply."""
        return tuple((e, e.reply) for e in self.exchanges if e.reply is not None)

    @property
    def infra(self) -> Failure | None:
        """The failure that makes this dialogue unfit to be scored, if there is one."""
        return next((r.failure for _, r in self.played if r.failure is not None and r.failure.infra), None)
