"""How a training method states its parameters: one frozen dataclass whose fields carry their meaning and their range.

The same metadata checks a request and fills `ListTrainingMethods`, so what is documented is what is enforced. This
module knows no method and imports no machine-learning library.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

from chatmill.errors import FieldViolation, InvalidArgument
from chatmill.plugins import parse_parameters

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """The bounds of a number; None leaves that side open.

    Attributes:
        above: the value must be greater than this.
        minimum: the value must be at least this.
        maximum: the value must be at most this.
    """

    above: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    def violation(self, value: float) -> str | None:
        """What is wrong with `value`, or None if it lies inside."""
        if value != value:
            return "must be a number, not NaN"
        if self.above is not None and value <= self.above:
            return f"must be greater than {self.above:g}, not {value:g}"
        if self.minimum is not None and value < self.minimum:
            return f"must be at least {self.minimum:g}, not {value:g}"
        if self.maximum is not None and value > self.maximum:
            return f"must be at most {self.maximum:g}, not {value:g}"
        return None


def parameter(
    default: T,
    meaning: str,
    *,
    above: float | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    folder: bool = False,
) -> T:
    """A dataclass field with its meaning (units included) and its range.

    Args:
        default: what holds if a request leaves it out.
        meaning: one sentence, with the unit.
        above: the value must be more than this.
        minimum: least value.
        maximum: greatest value.
        folder: the value names a folder, which the service reads only under its allowed roots.

    Returns:
        a `dataclasses.Field`, typed as the value so that the class body reads like a plain dataclass.
    """
    bounds = Range(above, minimum, maximum)
    field: Any = dataclasses.field(default=default, metadata={"meaning": meaning, "range": bounds, "folder": folder})
    return cast(T, field)


@dataclass(frozen=True, slots=True)
class ParameterDescription:
    """One parameter as `ListTrainingMethods` shows it.

    Attributes:
        name: the key in a request's parameters.
        type: for people: `int`, `float`, `bool`, `str`, or the choices separated by `|`.
        default_json: the value that holds if the request leaves it out, as JSON; empty if it is required.
        meaning: what it does, with its unit.
        minimum: least value allowed, or None.
        maximum: greatest value allowed, or None.
    """

    name: str
    type: str
    default_json: str
    meaning: str
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """Base of every method's parameters: checks the ranges that the fields state.

    Raises:
        InvalidArgument: one violation per field outside its range.
    """

    def __post_init__(self) -> None:
        violations = []
        for spec in dataclasses.fields(self):
            value, bounds = getattr(self, spec.name), spec.metadata.get("range")
            if bounds is not None and isinstance(value, int | float) and not isinstance(value, bool):
                problem = bounds.violation(value)
                if problem:
                    violations.append(FieldViolation(f"parameters.{spec.name}", problem))
        violations.extend(FieldViolation(f"parameters.{name}", problem) for name, problem in self.conflicts())
        if violations:
            raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)

    def conflicts(self) -> list[tuple[str, str]]:
        """What is wrong between fields, as (field, problem); a method overrides it."""
        return []

    def resolved(self) -> dict[str, Any]:
        """Every parameter with the value that holds, for the registry entry."""
        return dataclasses.asdict(self)


def check_parameters(cls: type[Parameters], values: Mapping[str, Any], *, field: str = "parameters") -> Parameters:
    """The parameters that `values` gives, with names, types and ranges checked.

    Raises:
        InvalidArgument: one violation per wrong parameter, each under `field`.
    """
    try:
        return parse_parameters(cls, values)
    except InvalidArgument as error:
        prefix = "parameters."
        found = [FieldViolation(f"{field}.{v.field.removeprefix(prefix)}", v.description) for v in error.violations]
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found), violations=found) from None


def named_folders(parameters: Parameters) -> dict[str, str]:
    """Parameter to folder, for every parameter that names one."""
    marked = (spec.name for spec in dataclasses.fields(parameters) if spec.metadata.get("folder"))
    return {name: value for name in marked if (value := str(getattr(parameters, name)))}


def describe(cls: type[Parameters]) -> list[ParameterDescription]:
    """All parameters of `cls` in the order in which they are declared."""
    hints = typing.get_type_hints(cls)
    described = []
    for spec in dataclasses.fields(cls):
        bounds = cast(Range, spec.metadata.get("range", Range()))
        default = "" if spec.default is dataclasses.MISSING else json.dumps(spec.default)
        least = bounds.minimum if bounds.minimum is not None else bounds.above
        described.append(
            ParameterDescription(
                name=spec.name,
                type=_type_name(hints[spec.name]),
                default_json=default,
                meaning=str(spec.metadata.get("meaning", "")),
                minimum=least,
                maximum=bounds.maximum,
            )
        )
    return described


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(str(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_type_name(a) for a in typing.get_args(hint) if a is not type(None))
    return getattr(hint, "__name__", str(hint))


@dataclass(frozen=True, kw_only=True)
class GradientParameters(Parameters):
    """What every method that trains weights has in common: the optimiser, the batches and what the loss sees."""

    learning_rate: float = parameter(2e-4, "Peak learning rate of AdamW.", above=0, maximum=1)
    epochs: float = parameter(1.0, "Passes over the data; ignored if max_steps is set.", above=0, maximum=1000)
    max_steps: int = parameter(0, "Optimiser steps to make; 0 lets epochs decide.", minimum=0)
    batch_size: int = parameter(8, "Conversations in one forward pass.", minimum=1, maximum=4096)
    gradient_accumulation: int = parameter(1, "Forward passes added up per optimiser step.", minimum=1, maximum=4096)
    warmup_ratio: float = parameter(0.03, "Share of the steps over which the rate rises from 0.", minimum=0, maximum=1)
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = parameter(
        "cosine", "How the learning rate falls after the warm-up."
    )
    weight_decay: float = parameter(0.0, "AdamW's decoupled weight decay.", minimum=0, maximum=1)
    max_grad_norm: float = parameter(1.0, "Gradients are clipped to this norm; 0 turns clipping off.", minimum=0)
    max_length: int = parameter(1024, "Longest training sequence, in tokens.", minimum=8, maximum=1_048_576)
    over_length: Literal["truncate", "drop", "refuse"] = parameter(
        "truncate",
        "What happens to a conversation above max_length: cut after the last whole token that fits, left out, or the "
        "job is refused. Each is counted and shown.",
    )
    loss_on: Literal["assistant", "all"] = parameter(
        "assistant",
        "Which tokens the loss sees: those that the assistant must produce (end of turn included), or all of them, "
        "which suits only the pretraining of a new model.",
    )
    precision: Literal["auto", "fp32", "bf16"] = parameter(
        "auto", "Arithmetic: bf16 autocast, fp32, or whichever a short measurement on this machine finds faster."
    )
    group_by_length: bool = parameter(True, "Batch conversations of similar length, which saves padding.")
    progress_steps: int = parameter(5, "Optimiser steps between two progress reports.", minimum=1, maximum=100_000)
    checkpoint_seconds: float = parameter(
        600.0, "Seconds between two checkpoints; 0 writes one only when the job is interrupted.", minimum=0
    )
