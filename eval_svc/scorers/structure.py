"""Checks for structured content: json_schema and number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import jsonschema
import regex
from jsonschema.validators import extend
from referencing import Registry as References

from eval_svc.numerals import DIGITS, numbers
from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.scorers.patterns import search
from eval_svc.text import normalise, plain

_FENCE = regex.compile(r"```(?:json)?\s*(.*?)```", regex.DOTALL | regex.IGNORECASE)


def _timed_pattern(validator: Any, pattern: str, instance: Any, schema: Any) -> Iterator[jsonschema.ValidationError]:
    """The keyword `pattern`, limited in time like every other expression of a suite."""
    if validator.is_type(instance, "string") and search(pattern, instance, ignore_case=False) is None:
        yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


_Validator: Any = extend(jsonschema.Draft202012Validator, {"pattern": _timed_pattern})  # type: ignore[no-untyped-call]


@SCORERS.register("json_schema")
@dataclass(frozen=True)
class JsonSchema(Check):
    """Passes if the text is JSON (bare or in a code fence) that the schema accepts.

    Attributes:
        schema: JSON Schema, draft 2020-12; references to other documents are not followed.
    """

    schema: dict[str, Any]

    def __post_init__(self) -> None:
        try:
            _Validator.check_schema(self.schema)
        except jsonschema.SchemaError as error:
            raise ValueError(f"is not a JSON Schema: {error.message}") from None
        if "patternProperties" in json.dumps(self.schema):
            raise ValueError("patternProperties can't be limited in time; name the properties instead")

    def score(self, view: View) -> Finding:
        """Evidence is the JSON text; the note says what the schema refuses."""
        fenced = _FENCE.search(view.text)
        source = (fenced.group(1) if fenced else view.text).strip()
        try:
            value = json.loads(source)
        except ValueError as error:
            return Finding("fail", 0.0, note=f"not JSON: {error}")
        validator = _Validator(self.schema, registry=References())
        try:
            problem = next(iter(validator.iter_errors(value)), None)
        except TimeoutError:
            return Finding("unscored", note="a pattern of the schema took too long")
        except Exception as error:  # referencing raises several kinds for a reference that can't be followed
            return Finding("unscored", note=f"the schema can't be applied: {error}")
        if problem is not None:
            return Finding("fail", 0.0, source[:200], problem.message[:200])
        return Finding("pass", 1.0, source[:200])


@SCORERS.register("number")
@dataclass(frozen=True)
class Number(Check):
    """Passes if a number of the text, in the unit asked for, is one of the values. With a unit, number words count too.

    Attributes:
        value: the right number, or all that are right.
        tolerance: how far off still counts, in the same unit.
        unit: words or signs that must stand right after the number or right before it, such as `days`, `天`, `$`;
            empty: any.
        only: every number with that unit must be right; then a text without any is not applicable.
    """

    value: float | tuple[float, ...]
    tolerance: float = 0.0
    unit: str | tuple[str, ...] = ()
    only: bool = False
    _wanted: tuple[float, ...] = field(init=False, repr=False, default=())

    error = "wrong_number"
    forbidden_error = "wrong_number"

    def __post_init__(self) -> None:
        wanted = self.value if isinstance(self.value, tuple) else (self.value,)
        if not wanted:
            raise ValueError("value must hold at least one number")
        if self.tolerance < 0:
            raise ValueError("tolerance must be 0 or more")
        object.__setattr__(self, "_wanted", wanted)

    def score(self, view: View) -> Finding:
        """Evidence is the deciding number with its unit."""
        found = list(self._numbers(view.text))
        right = [(n, q) for n, q in found if any(abs(n - w) <= self.tolerance + 1e-9 for w in self._wanted)]
        wrong = [(n, q) for n, q in found if (n, q) not in right]
        if self.only:
            if not found:
                return Finding("n/a", note="no number with that unit")
            return Finding(verdict(not wrong), len(right) / len(found), (wrong or right)[0][1])
        if right:
            return Finding("pass", 1.0, right[0][1])
        if wrong:
            return Finding("fail", 0.0, wrong[0][1])
        # what is not said is missing, not wrong
        return Finding("fail", 0.0, note="no number with that unit", error="wrong_answer")

    def _numbers(self, text: str) -> Iterator[tuple[float, str]]:
        normal = normalise(text)
        given = (self.unit,) if isinstance(self.unit, str) else self.unit
        # the longest first, so that the evidence is "30 days" and not "30 day"
        units = sorted((plain(u) for u in given if u.strip()), key=len, reverse=True)
        # without a unit, "two" is as often a word as a figure
        found = numbers(normal.text) if units else ((*m.span(), float(m.group())) for m in DIGITS.finditer(normal.text))
        for start, end, value in found:
            if units:
                after, before = normal.text[end:].lstrip(" -"), normal.text[:start].rstrip()
                behind = next((u for u in units if after.startswith(u)), None)
                if behind is not None:
                    end = normal.text.index(behind, end) + len(behind)
                elif not any(before.endswith(u) for u in units):
                    continue
            yield value, normal.quote(start, end)
