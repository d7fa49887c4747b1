"""What a moderator is, and what it says.

A scanner reads one text as it grows and says, besides what it found, up to where it is sure: text beyond that point
may still become part of a finding, so a caller that enforces keeps it back. Offsets are characters from the beginning
of the text that the scanner was fed. This module knows no rule, no model and no contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from chatmill.plugins import Registry


class Stage(StrEnum):
    """What is looked at."""

    INPUT = "input"
    """What the customer or a tool said since the agent's last turn."""
    OUTPUT = "output"
    """The reply."""


class Response(StrEnum):
    """What a moderator wants done about a finding when it is enforced. Set per moderator by the operator."""

    REPORT = "report"
    """Say so, and let the text pass."""
    REDACT = "redact"
    """Put a placeholder in the place of the span."""
    BLOCK = "block"
    """Stop before the span."""


class Action(StrEnum):
    """What was done about a finding."""

    REPORTED = "reported"
    REDACTED = "redacted"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True)
class Finding:
    """A span that a scanner objects to.

    Attributes:
        start: its first character.
        end: the character after its last.
        category: what it is, for example `email`.
        score: how sure, 0 to 1; 1 for rules.
        placeholder: what stands in its place when it is redacted.
    """

    start: int
    end: int
    category: str
    score: float = 1.0
    placeholder: str = "[removed]"


@dataclass(frozen=True, slots=True)
class ModerationContext:
    """What a scanner may know about the request.

    Attributes:
        stage: what is looked at.
        system_prompt: the operator's instructions that the model was given, for finding leaks of them.
    """

    stage: Stage
    system_prompt: str = ""


class Scanner(Protocol):
    """Reads one text as it grows.

    Attributes:
        safe: characters that can't become part of a later finding. Never goes back, and no finding starts before the
            value that `safe` had when the text was still shorter.
    """

    safe: int

    def feed(self, text: str, *, final: bool) -> list[Finding]:
        """Findings that became sure with `text`, the next piece. With `final` nothing follows, and all is sure."""
        ...


Judgement = Callable[[str], Awaitable[list[Finding]]]
"""Looks at a whole piece of text; offsets are within it. May call a model or another machine."""


class Moderator(ABC):
    """One installed and configured way of looking. Made once, used by all requests at once.

    Args:
        parameters: an instance of `Parameters`.
        environment: what it may reach.

    Attributes:
        Parameters: frozen dataclass of its settings, for `chatmill.plugins.parse_parameters`.
        natural: what is done about a finding when a client asks for enforcement and the operator only reports.
    """

    Parameters: ClassVar[type[Any]]
    natural: ClassVar[Response] = Response.BLOCK

    @abstractmethod
    def __init__(self, parameters: Any, environment: ModeratorEnvironment) -> None: ...

    @abstractmethod
    def open(self, context: ModerationContext) -> Scanner | Judgement | None:
        """What looks at one text of one request, or None where this moderator has nothing to say."""


class BlockedPhrases(Protocol):
    """Phrases that an operator added while the service runs; `version` changes with them."""

    @property
    def version(self) -> int:
        """Counts up with each change."""
        ...

    @property
    def phrases(self) -> tuple[str, ...]:
        """All of them."""
        ...


@dataclass(frozen=True, slots=True)
class ModeratorEnvironment:
    """What moderators may reach besides their parameters.

    Attributes:
        blocked: the operator's phrases of the moment.
        ask: puts a prompt to a model by its resource name and returns its answer; raises an error of `chatmill.errors`.
        read: text of a file under the operator's folders, by its path in the configuration.
    """

    blocked: BlockedPhrases
    ask: Callable[[str, str], Awaitable[str]]
    read: Callable[[str], str]


MODERATORS: Registry[type[Moderator]] = Registry("moderator", "chatmill.moderators")
"""All moderators by name: `words`, `personal`, `leak`, `judge`."""
