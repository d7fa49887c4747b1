"""Checks for structured content: json_schema and number."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
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


_TIME = regex.compile(r"day|week|month|year|hour|minute|[天日周月年]|星期|小时|分钟")
_ARTICLE = regex.compile(r"\ban? (?=\p{L})")


def _any_of(units: Sequence[str]) -> str:
    """A pattern for the units as whole words; Chinese ones need nothing around them."""
    return "|".join(
        (r"(?<!\p{Latin})" if regex.match(r"\p{Latin}", unit) else "")
        + regex.escape(unit)
        + (r"s?(?!\p{Latin})" if regex.search(r"\p{Latin}$", unit) else "")
        for unit in units
    )


@SCORERS.register("number")
@dataclass(frozen=True)
class Number(Check):
    """Passes if a number of the text, in the unit asked for, is one of the values. With a unit, number words count too.

    Attributes:
        value: the right number, or all that are right.
        tolerance: how far off still counts, in the same unit.
        unit: words or signs that must stand right after the number, such as `days`, `天`, `euros`; or right before it,
            such as `$`, but for units of time, behind which another figure begins ("Friday 9"). Whole words, in the
            plural too. Empty: any.
        only: every number with that unit must be right; then a text without any is not applicable.
        may_repeat: with `only`: numbers that the customer or the memory gave in that unit are right too.
    """

    value: float | tuple[float, ...]
    tolerance: float = 0.0
    unit: str | tuple[str, ...] = ()
    only: bool = False
    may_repeat: bool = False
    _wanted: tuple[float, ...] = field(init=False, repr=False, default=())
    _behind: regex.Pattern[str] | None = field(init=False, repr=False, default=None)
    _before: regex.Pattern[str] | None = field(init=False, repr=False, default=None)

    error = "wrong_number"
    forbidden_error = "wrong_number"

    def __post_init__(self) -> None:
        wanted = self.value if isinstance(self.value, tuple) else (self.value,)
        if not wanted:
            raise ValueError("value must hold at least one number")
        if self.tolerance < 0:
            raise ValueError("tolerance must be 0 or more")
        if self.may_repeat and not self.only:
            raise ValueError("may_repeat says what else is right where all numbers must be, so it needs only: true")
        object.__setattr__(self, "_wanted", wanted)
        given = (self.unit,) if isinstance(self.unit, str) else self.unit
        # the longest first, so that the evidence is "30 days" and not "30 day"
        units = sorted((plain(u) for u in given if u.strip()), key=len, reverse=True)
        if units:
            object.__setattr__(self, "_behind", regex.compile(rf"[ -]*(?:{_any_of(units)})"))
            ahead = [u for u in units if not _TIME.search(u)]
            if ahead:
                object.__setattr__(self, "_before", regex.compile(rf"(?:{_any_of(ahead)}) ?$"))

    def score(self, view: View) -> Finding:
        """Evidence is the deciding number with its unit."""
        wanted = (*self._wanted, *(self._given(view) if self.may_repeat else ()))
        found = list(self._numbers(view.text))
        right = [(n, q) for n, q in found if any(abs(n - w) <= self.tolerance + 1e-9 for w in wanted)]
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

    def _given(self, view: View) -> Iterator[float]:
        """What the agent need not have made up."""
        for text in (view.memory, *(m.content for m in view.dialogue if m.role == "user")):
            # "a year" of the customer is "one year" in the answer; in the answer itself "a day" is mostly no figure
            yield from (value for value, _ in self._numbers(_ARTICLE.sub("1 ", plain(text))))

    def _numbers(self, text: str) -> Iterator[tuple[float, str]]:
        normal = normalise(text)
        if self._behind is None:
            # without a unit, "two" is as often a word as a figure
            for match in DIGITS.finditer(normal.text):
                yield float(match.group()), normal.quote(*match.span())
            return
        taken = 0
        for start, end, value in numbers(normal.text):
            behind = self._behind.match(normal.text, end)
            before = self._before.search(normal.text, taken, start) if self._before is not None else None
            if behind is not None:
                end = taken = behind.end()
            elif before is None:
                continue
            if normal.text[:start].endswith("第"):  # the second day, not two days
                continue
            yield value, normal.quote(start, end)
