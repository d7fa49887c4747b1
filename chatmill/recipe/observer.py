"""What a run of a recipe tells the one who watches: plain data, so that a terminal, a log and a test can all listen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

STEPS = ("check", "dataset", "base", "train", "evaluate", "promote")
"""The steps of a run, in order."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is.

    Attributes:
        done: units of work done.
        total: units in all; 0 if that isn't known yet.
        text: what is being done and how it goes, for people.
    """

    done: float
    total: float
    text: str = ""


@dataclass(frozen=True, slots=True)
class StepResult:
    """How a step ended.

    Attributes:
        step: one of `STEPS`.
        summary: what came out, for people.
        reused: whether it was taken from an earlier run because its inputs have not changed.
        seconds: time on the wall.
    """

    step: str
    summary: str
    reused: bool
    seconds: float


class Observer(Protocol):
    """Listens to a run."""

    def began(self, step: str, detail: str) -> None:
        """A step begins; `detail` says on what."""

    def progress(self, step: str, progress: Progress) -> None:
        """A step goes on."""

    def note(self, step: str, text: str) -> None:
        """Something that the owner should know, and nothing that ends the run."""

    def ended(self, result: StepResult) -> None:
        """A step ended well."""


class Silent:
    """Listens and says nothing."""

    def began(self, step: str, detail: str) -> None:
        """Nothing."""

    def progress(self, step: str, progress: Progress) -> None:
        """Nothing."""

    def note(self, step: str, text: str) -> None:
        """Nothing."""

    def ended(self, result: StepResult) -> None:
        """Nothing."""
