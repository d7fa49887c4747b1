"""Training jobs as plain data: what was asked, which states there are, and which changes of state are legal.

It knows neither how jobs are kept nor how they are run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from chatmill.errors import Aborted, FailedPrecondition
from factory_svc.examples import ToolMessages


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


LEGAL: Mapping[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.CANCELLED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.CANCELLING}),
    State.CANCELLING: frozenset({State.CANCELLED, State.SUCCEEDED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
}
"""Which states may follow each."""


def check_transition(name: str, old: State, new: State) -> None:
    """Refuse an illegal change of state.

    Raises:
        FailedPrecondition: reason `ILLEGAL_TRANSITION`.
    """
    if new not in LEGAL[old]:
        raise FailedPrecondition(
            f"{name} is {old} and can't become {new}.",
            reason="ILLEGAL_TRANSITION",
            metadata={"state": str(old), "wanted": str(new)},
        )


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What was asked for.

    Attributes:
        base: as the request named it; empty for methods that need none.
        dataset: `datasets/{id}`.
        model_id: the result becomes its next version.
        method: name of the training method.
        parameters: as the request gave them.
        system_prompt: the operator's instructions.
        languages: only items of these languages; all if empty.
        seed: of everything random.
        tool_messages: whether what tools gave back stays as context.
        labels: taken over by the registry entry.
    """

    dataset: str
    model_id: str
    method: str
    base: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    system_prompt: str = ""
    languages: tuple[str, ...] = ()
    seed: int = 0
    tool_messages: ToolMessages = "include"
    labels: dict[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "languages": list(self.languages)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> JobSpec:
        """What `to_dict` made."""
        return cls(**{**values, "languages": tuple(values["languages"])})


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training, from request to registered model.

    Attributes:
        id: the id in `trainingJobs/{id}`.
        number: counts up with each job; the order of the queue.
        spec: what was asked for.
        base_name: `models/{id}/versions/{n}` that `spec.base` stood for when the job was accepted; empty for none.
        state: where it stands.
        progress: newest progress, the fields of `Progress`; empty before the first.
        model: resource name of the version it made, or empty.
        error: why it failed, as `error_to_dict` gives it; None unless it did.
        created: when it was accepted.
        started: when it began.
        ended: when it ended.
        last_sequence: sequence number of its newest event.
    """

    id: str
    spec: JobSpec
    created: datetime
    number: int = 0
    base_name: str = ""
    state: State = State.QUEUED
    progress: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    error: dict[str, Any] | None = None
    started: datetime | None = None
    ended: datetime | None = None
    last_sequence: int = 0

    @property
    def name(self) -> str:
        """Resource name."""
        return f"trainingJobs/{self.id}"


class EventKind(StrEnum):
    """What an event tells."""

    STATE = "state"
    PROGRESS = "progress"
    WARNING = "warning"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a job.

    Attributes:
        sequence: counts up from 1 within the job, without gaps.
        time: when.
        kind: what kind of thing.
        payload: `{"state": ...}`, the fields of `Progress`, `{"text": ...}`, or nothing for `FINISHED`.
    """

    sequence: int
    time: datetime
    kind: EventKind
    payload: dict[str, Any]


def left_behind(job: Job, checkpoints: Path) -> Aborted:
    """Why a job that was running when the service ended is FAILED, and what is left of it in `checkpoints`."""
    at = f" at step {job.progress['step']} of {job.progress['total_steps']}" if job.progress.get("total_steps") else ""
    saved = f" A checkpoint lies in {checkpoints}." if any(checkpoints.glob("checkpoint-*")) else ""
    return Aborted(
        f"The factory was stopped while {job.name} was running{at}.{saved} Train again to redo it.",
        reason="INTERRUPTED",
        metadata={"checkpoints": str(checkpoints)} if saved else {},
    )
