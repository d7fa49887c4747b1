"""What the core needs from outside, as Protocols; `clients.py` implements them over the stubs of the other services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from eval_svc.spec import TargetSpec
from eval_svc.statistics import Interval
from eval_svc.target import Target


class Agents(Protocol):
    """Makes targets."""

    def target(self, spec: TargetSpec) -> Target:
        """An agent to talk to. Raises InvalidArgument, NotFound or PermissionDenied if the spec can't be served."""


@dataclass(frozen=True, slots=True)
class ModelScore:
    """What is written back into a model's registry entry.

    Attributes:
        gate_passed: None if no gate was asked for.
        ended_at: seconds since the epoch.
    """

    evaluation: str
    suite: str
    suite_digest: str
    pass_rate: float
    interval: Interval
    verdict: str
    gate_passed: bool | None
    ended_at: float


class ScoreBook(Protocol):
    """Where scores of models are kept."""

    async def record(self, model: str, score: ModelScore) -> None:
        """Write a score into the entry of `models/{id}/versions/{n}`. Raises a ChatmillError if that fails."""


Labels = Mapping[str, str]
