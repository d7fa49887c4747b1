"""What a cleaning step is, and how what it does is counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from dataset_svc.conversation import Conversation

MAX_EXAMPLES = 3
"""Places kept per reason, so that a person can look up what was dropped without the report growing with the data."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The conversation goes on.

    Attributes:
        conversation: as it is after the step.
        change: what the step changed, in words; None if nothing.
    """

    conversation: Conversation
    change: str | None = None


@dataclass(frozen=True, slots=True)
class Dropped:
    """The conversation is left out.

    Attributes:
        reason: why, in words, the same for all conversations that are dropped for it.
    """

    reason: str


class Step(Protocol):
    """One cleaning step. An instance serves one run, so it may remember what it has seen."""

    name: ClassVar[str]
    """Name in reports and in settings."""

    def __call__(self, conversation: Conversation) -> Kept | Dropped:
        """The conversation after this step, or why it is left out."""


@dataclass(slots=True)
class Tally:
    """How often something happened, with the first places.

    Attributes:
        count: conversations.
        examples: places (`file:line`) of the first few.
    """

    count: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, place: str) -> None:
        """One more."""
        self.count += 1
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(place)


@dataclass(slots=True)
class Report:
    """What cleaning did, by step and reason.

    Attributes:
        dropped: conversations left out.
        changed: conversations changed and kept.
    """

    dropped: dict[tuple[str, str], Tally] = field(default_factory=dict)
    changed: dict[tuple[str, str], Tally] = field(default_factory=dict)

    def drop(self, step: str, reason: str, place: str) -> None:
        """Count a conversation that was left out."""
        self.dropped.setdefault((step, reason), Tally()).add(place)

    def change(self, step: str, reason: str, place: str) -> None:
        """Count a conversation that was changed."""
        self.changed.setdefault((step, reason), Tally()).add(place)

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """As plain data for a manifest."""
        return {"dropped": _rows(self.dropped), "changed": _rows(self.changed)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """The opposite of `to_json`."""
        return cls(_tallies(data["dropped"]), _tallies(data["changed"]))


def _rows(tallies: Mapping[tuple[str, str], Tally]) -> list[dict[str, Any]]:
    return [
        {"step": step, "reason": reason, "count": tally.count, "examples": tally.examples}
        for (step, reason), tally in tallies.items()
    ]


def _tallies(rows: list[dict[str, Any]]) -> dict[tuple[str, str], Tally]:
    return {(row["step"], row["reason"]): Tally(row["count"], list(row["examples"])) for row in rows}
