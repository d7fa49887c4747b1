"""Who answers when the model that was asked for can't: a smaller model, an access point elsewhere, a fixed answer.

Each model may have a chain. A step is taken on overload, when the engine is not healthy or its breaker is open, when
the first word does not come in time, or when an operator forces it; never after the first word, unless that is
retracted. This module knows no engine; it only decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import prometheus_client

from chatmill.errors import Aborted, ChatmillError, FailedPrecondition, Internal, ResourceExhausted, Unavailable
from inference_svc.entries import ModelEntry
from inference_svc.events import FallbackMode, FallbackReason
from inference_svc.rates import RATE_LIMITED

FALLBACKS = prometheus_client.Counter(
    "chatmill_fallbacks",
    "Requests that another model answered than was asked for, by model and reason.",
    ["model", "reason"],
)


@dataclass(frozen=True)
class Chain:
    """What stands in for a model.

    Attributes:
        model: `models/{id}`, a version or an alias, as requests name it; `*` for all that have no chain of their own.
        models: names of the models to try in its place, in order; access points in the registry are models too.
        canned: fixed answer when none of them can; empty for an error instead.
        first_word_seconds: seconds after which a model that has not said a word is given up; 0 for never.
        by_default: whether requests that leave the choice to the server may fall back.
    """

    model: str
    models: tuple[str, ...] = ()
    canned: str = ""
    first_word_seconds: float = 0.0
    by_default: bool = True

    def __post_init__(self) -> None:
        if not self.models and not self.canned:
            raise ValueError("needs models to fall back to, or a canned answer")
        if self.first_word_seconds < 0:
            raise ValueError("first_word_seconds must not be negative")


@dataclass(frozen=True, slots=True)
class Step:
    """One way to answer: a model by name, or a fixed answer (`model` empty)."""

    model: str
    canned: str = ""


class Breaker:
    """Keeps requests away from a model that keeps failing, and lets one through now and then to see whether it is back.

    Args:
        threshold: failures in a row that open it.
        seconds: how long it stays open before one request is let through.
        clock: monotonic seconds.
    """

    def __init__(self, threshold: int = 5, seconds: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = threshold
        self._seconds = seconds
        self._clock = clock
        self._failures = 0
        self._opened = 0.0

    @property
    def open(self) -> bool:
        """Whether requests are kept away."""
        return self._failures >= self._threshold and self._clock() - self._opened < self._seconds

    def allow(self) -> bool:
        """Whether this request may try. After the pause one may, and the next only if that one succeeded."""
        if self._failures < self._threshold:
            return True
        if self.open:
            return False
        self._opened = self._clock()
        return True

    def success(self) -> None:
        """The model answered."""
        self._failures = 0

    def failure(self) -> None:
        """The model failed."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._opened = self._clock()


@dataclass(slots=True)
class Fallbacks:
    """All chains and breakers.

    Attributes:
        chains: the operator's chains.
        threshold: failures in a row that open a breaker.
        seconds: how long a breaker stays open.
        forced: names of models that an operator has taken out of service, asked for at each request.
    """

    chains: Sequence[Chain] = ()
    threshold: int = 5
    seconds: float = 10.0
    forced: Callable[[], Collection[str]] = tuple
    _breakers: dict[str, Breaker] = field(default_factory=dict)

    def chain(self, requested: str, entry: ModelEntry | None) -> Chain | None:
        """The chain of a model: by the name asked for, by its version, by its id, or the one for all."""
        names = [requested, *((entry.name, f"models/{entry.model_id}") if entry else ()), "*"]
        return next((c for n in names for c in self.chains if c.model == n), None)

    def steps(self, requested: str, chain: Chain | None, mode: FallbackMode) -> list[Step]:
        """The ways to answer, the model itself first.

        Raises:
            InvalidArgument: never; a chain that names an unknown model fails when its step is taken.
        """
        allowed = chain is not None and (
            mode is FallbackMode.ALLOW or (mode is FallbackMode.DEFAULT and chain.by_default)
        )
        steps = [Step(requested)]
        if chain is not None and allowed:
            steps += [Step(name) for name in chain.models if name != requested]
            steps += [Step("", chain.canned)] if chain.canned else []
        return steps

    def is_forced(self, requested: str, entry: ModelEntry | None) -> bool:
        """Whether an operator has taken the model out of service."""
        forced = self.forced()
        return bool(forced) and (
            requested in forced
            or (entry is not None and (entry.name in forced or f"models/{entry.model_id}" in forced))
        )

    def breaker(self, model: str) -> Breaker:
        """The breaker of a model, by the name of its version."""
        if model not in self._breakers:
            self._breakers[model] = Breaker(self.threshold, self.seconds)
        return self._breakers[model]


def reason_of(error: BaseException) -> FallbackReason:
    """Why another model should answer after this error, or NONE when it would meet the same one or was to blame."""
    if isinstance(error, ResourceExhausted):
        return FallbackReason.NONE if error.reason == RATE_LIMITED else FallbackReason.OVERLOAD
    if isinstance(error, TimeoutError):
        return FallbackReason.TIMEOUT
    if isinstance(error, Unavailable | Aborted | Internal | FailedPrecondition):
        return FallbackReason.UNHEALTHY
    # Anything that is no error of ours is a defect of the engine, and another engine may do better.
    return FallbackReason.NONE if isinstance(error, ChatmillError) else FallbackReason.UNHEALTHY
