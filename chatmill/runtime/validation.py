"""REQUIRED fields of the contract, checked for every request of every service.

A field with `(google.api.field_behavior) = REQUIRED` must be set: a message or `optional` field must be present, a
plain scalar must not be its zero, a list or map must not be empty. Fields of messages that are set are looked at too,
at any depth. Which messages need a look is worked out once per message type.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from chatmill.errors import FieldViolation, InvalidArgument
from chatmill.runtime.interceptor import Call

SHOWN = 20
"""Violations that are reported; the rest is counted, since every item of a long list may lack the same field."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What to look at in one message type: required fields, and fields with messages that need a look themselves."""

    required: tuple[FieldDescriptor, ...]
    nested: tuple[FieldDescriptor, ...]


_plans: dict[str, _Plan] = {}


def required_fields(call: Call) -> None:
    """Middleware: refuse requests that lack a REQUIRED field."""
    call.checks.append(check_required)


def check_required(request: Any) -> None:
    """Check one request message.

    Raises:
        InvalidArgument: reason `REQUIRED_FIELD_MISSING`, one violation per field, at most 20.
    """
    if not hasattr(request, "DESCRIPTOR"):
        return  # a generic handler that takes bytes
    missing = list(_missing(request, ""))
    if missing:
        shown = missing[:SHOWN]
        more = f", and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise InvalidArgument(
            f"{request.DESCRIPTOR.name} lacks required fields: {', '.join(shown)}{more}.",
            violations=[FieldViolation(name, "is required") for name in shown],
            reason="REQUIRED_FIELD_MISSING",
        )


def _missing(message: Any, prefix: str) -> Iterator[str]:
    plan = _plan(message.DESCRIPTOR)
    for spec in plan.required:
        if not (message.HasField(spec.name) if spec.has_presence else getattr(message, spec.name)):
            yield f"{prefix}{spec.name}"
    for spec in plan.nested:
        value = getattr(message, spec.name)
        if _is_map(spec):
            for key in value:
                yield from _missing(value[key], f"{prefix}{spec.name}[{key}].")
        elif spec.is_repeated:
            for index, item in enumerate(value):
                yield from _missing(item, f"{prefix}{spec.name}[{index}].")
        elif message.HasField(spec.name):
            yield from _missing(value, f"{prefix}{spec.name}.")


def _plan(descriptor: Descriptor) -> _Plan:
    plan = _plans.get(descriptor.full_name)
    if plan is None:
        plan = _Plan(
            tuple(f for f in descriptor.fields if _is_required(f)),
            tuple(f for f in descriptor.fields if _inner(f) is not None and _reaches_required(_inner(f), set())),
        )
        _plans[descriptor.full_name] = plan
    return plan


def _reaches_required(descriptor: Descriptor | None, seen: set[str]) -> bool:
    if descriptor is None or descriptor.full_name in seen:
        return False
    seen.add(descriptor.full_name)
    return any(_is_required(f) or _reaches_required(_inner(f), seen) for f in descriptor.fields)


def _is_required(spec: FieldDescriptor) -> bool:
    return field_behavior_pb2.REQUIRED in spec.GetOptions().Extensions[field_behavior_pb2.field_behavior]


def _is_map(spec: FieldDescriptor) -> bool:
    return bool(spec.message_type and spec.message_type.GetOptions().map_entry)


def _inner(spec: FieldDescriptor) -> Descriptor | None:
    """The message type of a field, or of the values of a map; None for scalars."""
    if _is_map(spec):
        assert spec.message_type is not None
        return spec.message_type.fields_by_name["value"].message_type
    return spec.message_type
