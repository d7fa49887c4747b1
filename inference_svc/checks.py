"""Checks a request before it costs anything. Field names are the contract's, since a client reads them.

What only the model knows (does the prompt fit, does the schema compile) is checked by the engine; its field names are
turned into the contract's here too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from chatmill.errors import FieldViolation, InvalidArgument
from inference_svc.events import ChatRequest
from inference_svc.generation import ConstraintKind, Role

MAX_REQUEST_ID = 128
MAX_STOP_SEQUENCES = 16
MAX_STOP_CHARACTERS = 256
MAX_CHOICES = 1000
MAX_LABELS = 16
MAX_FLUSH_SECONDS = 60
SHOWN = 20
"""Violations that are named; the rest is counted."""


@dataclass(frozen=True, slots=True)
class _Range:
    low: float
    high: float
    text: str
    low_open: bool = False

    def holds(self, value: float) -> bool:
        return (
            math.isfinite(value) and value <= self.high and (value > self.low if self.low_open else value >= self.low)
        )


_INT32 = 2**31 - 1
_RANGES = {
    "max_output_tokens": _Range(1, _INT32, "must be at least 1"),
    "min_output_tokens": _Range(0, _INT32, "must not be negative"),
    "temperature": _Range(0, 2, "must be between 0 and 2"),
    "top_p": _Range(0, 1, "must be above 0 and at most 1", low_open=True),
    "top_k": _Range(0, _INT32, "must not be negative; 0 keeps all"),
    "min_p": _Range(0, 1, "must be between 0 and 1"),
    "repetition_penalty": _Range(0, 2, "must be above 0 and at most 2", low_open=True),
    "presence_penalty": _Range(-2, 2, "must be between -2 and 2"),
    "frequency_penalty": _Range(-2, 2, "must be between -2 and 2"),
    "logprobs": _Range(0, 20, "must be between 0 and 20"),
}
_ENGINE_FIELDS = {
    "constraint": "spec.output_constraint",
    "overflow": "spec.limits.overflow",
    "max_prompt_tokens": "spec.limits.max_prompt_tokens",
    "flush_tokens": "spec.streaming.flush_tokens",
    "flush_interval": "spec.streaming.flush_interval",
    "request_id": "request_id",
}
"""Fields of `GenerationRequest` that the contract calls otherwise than by putting `spec.` before them."""


def check(request: ChatRequest) -> None:
    """Raise InvalidArgument with one violation per wrong field, at most 20."""
    found = list(_violations(request))
    if found:
        shown = found[:SHOWN]
        more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in shown) + more, violations=shown)


def contract_names(error: InvalidArgument) -> InvalidArgument:
    """The engine's refusal with the contract's field names."""
    renamed = [FieldViolation(_contract_name(v.field), v.description) for v in error.violations]
    message = "; ".join(f"{v.field}: {v.description}" for v in renamed) or error.message
    return InvalidArgument(message, violations=renamed, reason=error.reason, metadata=error.metadata)


def _contract_name(field: str) -> str:
    head, _, rest = field.partition(".")
    name = _ENGINE_FIELDS.get(head, head if head.startswith("spec") or not head else f"spec.{head}")
    return f"{name}.{rest}" if rest else name


def _violations(request: ChatRequest) -> Iterator[FieldViolation]:
    if len(request.request_id) > MAX_REQUEST_ID:
        yield FieldViolation("request_id", f"must have at most {MAX_REQUEST_ID} characters")
    if len(request.labels) > MAX_LABELS:
        yield FieldViolation("spec.labels", f"must be at most {MAX_LABELS}, not {len(request.labels)}")
    yield from _messages(request)
    yield from _sampling(request)
    yield from _streaming(request)
    constraint = request.constraint
    if (
        constraint is not None
        and constraint.kind is ConstraintKind.CHOICES
        and (not 0 < len(constraint.choices) <= MAX_CHOICES or "" in constraint.choices)
    ):
        yield FieldViolation("spec.output_constraint.choices", f"must be 1 to {MAX_CHOICES} texts, none of them empty")
    names = [tool.name for tool in request.tools]
    for name in {n for n in names if names.count(n) > 1}:
        yield FieldViolation("spec.tools", f"{name!r} is given twice; names are unique")


def _messages(request: ChatRequest) -> Iterator[FieldViolation]:
    if not request.messages:
        yield FieldViolation("spec.messages", "must hold at least one message")
        return
    system = 0
    for index, message in enumerate(request.messages):
        system += message.role is Role.SYSTEM
        if message.role is Role.SYSTEM and system > 1:
            yield FieldViolation(f"spec.messages[{index}].role", "is a second system message; join them into one")
        yield from _text(f"spec.messages[{index}].content", message.content)
    for index, fact in enumerate(request.facts):
        yield from _text(f"spec.facts[{index}]", fact)
    last = request.messages[-1]
    if last.role not in (Role.USER, Role.TOOL):
        yield FieldViolation(
            f"spec.messages[{len(request.messages) - 1}].role",
            f"is {last.role.name}, and the last message must be the customer's (USER) or a tool's (TOOL)",
        )
    elif not last.content.strip():
        yield FieldViolation(f"spec.messages[{len(request.messages) - 1}].content", "is empty; say something")


def _sampling(request: ChatRequest) -> Iterator[FieldViolation]:
    values = request.sampling
    for name, bounds in _RANGES.items():
        value = values.get(name)
        if isinstance(value, int | float) and not bounds.holds(value):
            yield FieldViolation(f"spec.sampling.{name}", f"{bounds.text}, not {value}")
    low, high = values.get("min_output_tokens"), values.get("max_output_tokens")
    if isinstance(low, int) and isinstance(high, int) and low > high >= 1:
        yield FieldViolation("spec.sampling.min_output_tokens", f"is {low}, above max_output_tokens, {high}")
    stops = values.get("stop_sequences", ())
    assert isinstance(stops, tuple)
    if len(stops) > MAX_STOP_SEQUENCES:
        yield FieldViolation("spec.sampling.stop_sequences", f"must be at most {MAX_STOP_SEQUENCES}, not {len(stops)}")
        return
    for index, stop in enumerate(stops):
        if not 0 < len(stop) <= MAX_STOP_CHARACTERS:
            yield FieldViolation(
                f"spec.sampling.stop_sequences[{index}]", f"must have 1 to {MAX_STOP_CHARACTERS} characters"
            )
        yield from _text(f"spec.sampling.stop_sequences[{index}]", stop)


def _streaming(request: ChatRequest) -> Iterator[FieldViolation]:
    at_least_one = {
        "spec.streaming.flush_tokens": request.flush_tokens,
        "spec.limits.max_prompt_tokens": request.max_prompt_tokens,
    }
    not_negative = {
        "spec.streaming.flush_interval": request.flush_interval,
        "spec.streaming.heartbeat_interval": request.heartbeat,
        "spec.limits.max_queue": request.max_queue,
        "spec.moderating.holdback_characters": request.holdback,
    }
    for name, count in at_least_one.items():
        if count is not None and count < 1:
            yield FieldViolation(name, f"must be at least 1, not {count}")
    if request.flush_interval is not None and request.flush_interval > MAX_FLUSH_SECONDS:
        yield FieldViolation(
            "spec.streaming.flush_interval", f"must be at most {MAX_FLUSH_SECONDS} s, not {request.flush_interval:g}"
        )
    for name, value in not_negative.items():
        if value is not None and value < 0:
            yield FieldViolation(name, f"must not be negative, not {value:g}")


def _text(field: str, text: str) -> Iterator[FieldViolation]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        yield FieldViolation(
            field, f"is not valid Unicode: {error.reason} at character {error.start}; send whole characters"
        )
