"""What the core needs from outside, as Protocols; `clients.py` implements them over the stubs of the other services."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from chatmill.errors import InvalidArgument
from eval_svc.spec import TargetSpec
from eval_svc.statistics import Interval
from eval_svc.target import Target, TargetInfo


class Agents(Protocol):
    """Makes targets."""

    def target(self, spec: TargetSpec) -> Target:
        """An agent to talk to. Raises InvalidArgument, NotFound or PermissionDenied if the spec can't be served."""


async def described(agents: Agents, spec: TargetSpec, field: str) -> TargetInfo:
    """What a model's name stands for now.

    The registry calls what it is asked for `name`, a field that our caller's request does not have.

    Raises:
        InvalidArgument: it can't be a model's name; says so of `field`.
        ChatmillError: whatever else keeps it from being served.
    """
    try:
        return await agents.target(spec).describe()
    except InvalidArgument as error:
        told = next((v.description for v in error.violations if v.field == "name"), None)
        if told is None:
            raise
        raise InvalidArgument.field(field, told, reason=error.reason) from None


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
