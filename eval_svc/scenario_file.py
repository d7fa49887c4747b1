"""Scenario files: the checked mapping of a YAML file becomes a `Scenario`, or every problem with file and line.

The file format is `eval_svc/schema/scenario.schema.json`. The structure is checked by the schema, the parameters of
each check by its scorer, and what only shows when the parts are seen together here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema

from chatmill import located_yaml
from chatmill.errors import ChatmillError, FieldViolation, InvalidArgument
from chatmill.located_yaml import Document, Location
from chatmill.plugins import nearest, parse_parameters
from eval_svc.scenario import CheckSpec, Gate, Memory, Persona, Scenario, Scope, Turn
from eval_svc.schema import OUTCOMES, scenario_schema
from eval_svc.scorers import SCORERS
from eval_svc.taxonomy import ERROR_CLASSES
from eval_svc.transcript import Message, Role

SOFT_TYPES = frozenset(("fuzzy", "semantic", "latency"))
"""Types that are soft unless the scenario says otherwise: likeness and speed are hints, not verdicts."""

_COMMON = frozenset(("type", "id", "gate", "weight", "error", "scope"))
_KINDS = {
    "string": "a text",
    "object": "a mapping",
    "array": "a list",
    "boolean": "true or false",
    "integer": "a whole number",
    "number": "a number",
}
"""The schema's names of types in words."""

_TYPES: dict[str, type] = {
    "string": str,
    "object": dict,
    "array": list,
    "boolean": bool,
    "integer": int,
    "number": float,
}
_VALIDATOR = jsonschema.Draft202012Validator(scenario_schema(with_checks=False))


def read_scenario(path: Path) -> Scenario:
    """The scenario in the file. Raises InvalidArgument with every problem as `file:line: place: what`, or NotFound."""
    return build_scenario(located_yaml.read(path))


def scenario_from_mapping(raw: Mapping[str, Any], name: str = "<scenario>") -> Scenario:
    """The scenario in a mapping that did not come from a file. Raises InvalidArgument as `read_scenario` does."""
    return build_scenario(Document(dict(raw), name))


def build_scenario(document: Document) -> Scenario:
    """Check a parsed file and make a scenario of it. Raises InvalidArgument with every problem found."""
    problems = list(structural_problems(document, _VALIDATOR))
    if problems:
        raise located_yaml.refuse(problems)
    builder = _Builder(document)
    scenario = builder.scenario(document.data)
    if builder.problems:
        raise located_yaml.refuse(builder.problems)
    return scenario


def check_problems(document: Document, at: Location, checks: Mapping[str, Any]) -> list[FieldViolation]:
    """What is wrong with the `expect` and `forbid` at a place of a file beyond structure; read as those of a turn."""
    builder = _Builder(document)
    builder.checks(checks, at)
    return builder.problems


def structural_problems(document: Document, validator: Any) -> Iterator[FieldViolation]:
    """What the schema refuses, in words for a person and with the line.

    What stands there is not quoted: whoever names a file need not be one who may read it.
    """
    for error in sorted(validator.iter_errors(document.data), key=lambda e: list(map(str, e.absolute_path))):
        at: Location = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for key in (k for k in error.instance if k not in known):
                yield document.problem(
                    (*at, key), f"is not a known key{nearest(key, known) or '.'} Known: {', '.join(known)}"
                )
        elif error.validator == "required":
            missing = [key for key in error.validator_value if key not in error.instance]
            yield document.problem(at, f"lacks {', '.join(map(repr, missing))}")
        elif error.validator == "enum":
            allowed = [str(value) for value in error.validator_value]
            hint = nearest(str(error.instance), allowed) or "."
            yield document.problem(at, f"is not one of the allowed words{hint} Allowed: {', '.join(allowed)}")
        elif error.validator == "type":
            yield document.problem(at, _type_message(error.validator_value, error.instance))
        else:
            said = error.message.removeprefix(repr(error.instance)).strip()
            yield document.problem(at, said if len(said) < 200 else said[:200] + "...")


def _type_message(wanted: Any, value: Any) -> str:
    kinds = [wanted] if isinstance(wanted, str) else list(wanted)
    told = " or ".join(_KINDS.get(kind, kind) for kind in kinds)
    quote = (
        "; put quotes around it, or YAML takes it for something else"
        if "string" in kinds and not isinstance(value, dict | list)
        else ""
    )
    return f"must be {told}, not {_kind(value)}{quote}"


def _kind(value: Any) -> str:
    for kind, types in _TYPES.items():
        if isinstance(value, types):
            return _KINDS[kind]
    return "empty" if value is None else "a date"


class _Builder:
    """Makes a scenario of data whose structure is known to be right, and gathers what is wrong beyond structure."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[FieldViolation] = []
        self._ids: set[str] = set()

    def scenario(self, data: Mapping[str, Any]) -> Scenario:
        memory = self._memory(data.get("memory", {}))
        turns = tuple(self._turn(turn, ("turns", i)) for i, turn in enumerate(data.get("turns", ())))
        final = data.get("final", {})
        last = [
            *self.checks(final, ("final",), scope="dialog"),
            *self._checks(
                [{"type": "judge", **criterion} for criterion in final.get("judge", ())],
                ("final", "judge"),
                forbid=False,
                scope="dialog",
            ),
        ]
        outcome = final.get("outcome", ())
        scenario = Scenario(
            id=data["id"],
            title=data.get("title", data["id"]),
            kind=data["kind"],
            severity=data.get("severity", "major"),
            turns=turns,
            tags=tuple(data.get("tags", ())),
            source={k: str(v) for k, v in data.get("source", {}).items()},
            persona=Persona(**data.get("persona", {})),
            memory=memory,
            policy=tuple(data.get("policy", ())),
            trials=data.get("trials"),
            history=_messages(data.get("history", ())),
            outcomes=tuple(outcome) if isinstance(outcome, list | tuple) else (outcome,),
            final=tuple(last),
            allow=frozenset(data.get("allow", ())),
            goal=data.get("goal", ""),
            max_turns=data.get("max_turns", 8),
            raw=data,
        )
        self._whole(scenario)
        return scenario

    def _memory(self, data: Mapping[str, Any]) -> Memory:
        sessions = tuple((str(s.get("when", "")), _messages(s["turns"])) for s in data.get("sessions", ()))
        profile = {name: str(value) for name, value in data.get("profile", {}).items()}
        return Memory(profile, sessions, tuple(data.get("facts", ())), tuple(map(str, data.get("canaries", ()))))

    def _turn(self, data: Mapping[str, Any], at: Location) -> Turn:
        when = data.get("when", {})
        return Turn(
            user=data["user"],
            variants=tuple(data.get("variants", ())),
            checks=self.checks(data, at),
            matched=when.get("matched"),
            not_matched=when.get("not_matched"),
            stop_on_fail=data.get("on_fail", "continue") == "stop",
        )

    def checks(self, data: Mapping[str, Any], at: Location, *, scope: Scope = "turn") -> tuple[CheckSpec, ...]:
        """The `expect` and `forbid` of a mapping."""
        return (
            *self._checks(data.get("expect", ()), (*at, "expect"), forbid=False, scope=scope),
            *self._checks(data.get("forbid", ()), (*at, "forbid"), forbid=True, scope=scope),
        )

    def _checks(self, entries: Any, at: Location, *, forbid: bool, scope: Scope) -> Iterator[CheckSpec]:
        for position, entry in enumerate(entries):
            try:
                yield self._check(entry, (*at, position), forbid=forbid, scope=scope)
            except InvalidArgument as error:
                for violation in error.violations:
                    place = (*at, position, *violation.field.removeprefix("check").lstrip(".").split("."))
                    self.problems.append(
                        self.document.problem(tuple(p for p in place if p != ""), violation.description)
                    )
            except ChatmillError as error:
                self.problems.append(self.document.problem((*at, position, "type"), error.message))

    def _check(self, entry: Mapping[str, Any], at: Location, *, forbid: bool, scope: Scope) -> CheckSpec:
        kind = entry["type"]
        scorer_class = SCORERS.get(kind)
        parameters = {key: value for key, value in entry.items() if key not in _COMMON}
        if kind == "judge" and entry.get("gate", "hard") != "hard":
            parameters.setdefault("rule", "majority")
        scorer = parse_parameters(scorer_class, parameters, field="check")
        error = entry.get("error", scorer.forbidden_error if forbid else scorer.error)
        if error not in ERROR_CLASSES:
            raise InvalidArgument.field("check.error", f"is no error class{nearest(error, ERROR_CLASSES)}")
        check_id = entry.get("id") or re.sub(r"[^a-z0-9]+", "-", f"{located_yaml.spell(at)}-{kind}".lower())
        if check_id in self._ids:
            raise InvalidArgument.field("check.id", f"{check_id!r} is taken by another check of this scenario")
        self._ids.add(check_id)
        default_gate: Gate = "soft" if kind in SOFT_TYPES else "hard"
        return CheckSpec(
            id=check_id,
            type=kind,
            scorer=scorer,
            forbid=forbid,
            gate=entry.get("gate", default_gate),
            weight=float(entry.get("weight", 1.0)),
            error=error,
            scope=entry.get("scope", scope),
        )

    def _whole(self, scenario: Scenario) -> None:
        """What only shows when the parts are seen together."""
        report = self.problems.append
        known = scenario.memory.known().casefold()
        for check in scenario.checks():
            fact = getattr(check.scorer, "fact", "") if check.type == "fact_recall" else ""
            if fact and fact not in scenario.memory.profile:
                hint = nearest(fact, scenario.memory.profile)
                report(self.document.problem(("memory",), f"has no profile entry {fact!r} to recall{hint}"))
            values = getattr(check.scorer, "value", ()) if check.type == "fact_recall" else ()
            said = known + "\n".join(m.content for m in scenario.history).casefold()
            said += "\n".join(turn.user for turn in scenario.turns).casefold()
            for value in (values,) if isinstance(values, str) else values:
                if value.casefold() not in said:
                    report(
                        self.document.problem(("memory",), f"does not hold {value!r}, which {check.id} wants recalled")
                    )
        for i, turn in enumerate(scenario.turns):
            for key, name in (("matched", turn.matched), ("not_matched", turn.not_matched)):
                names = {*OUTCOMES, *(c.id for t in scenario.turns[:i] for c in t.checks)}
                if name is not None and name not in names:
                    hint = f"is neither an outcome nor the id of an earlier check{nearest(name, names)}"
                    report(self.document.problem(("turns", i, "when", key), hint))
        for name in sorted(scenario.allow - set(ERROR_CLASSES)):
            report(self.document.problem(("allow",), f"{name!r} is no error class{nearest(name, ERROR_CLASSES)}"))
        if scenario.simulated and not scenario.goal:
            report(self.document.problem((), "kind simulated needs a goal, which tells the customer's part"))
        if not scenario.simulated and not scenario.turns:
            report(self.document.problem((), "lacks 'turns'"))
        checks = any(True for _ in scenario.checks()) or scenario.outcomes
        if not scenario.simulated and not checks and not self.problems:
            report(self.document.problem((), "checks nothing; add expect or forbid to a turn, or final.outcome"))


_ROLES: dict[str, Role] = {"user": "user", "agent": "assistant", "tool": "tool"}


def _messages(entries: Any) -> tuple[Message, ...]:
    """`{user: ...}`, `{agent: ...}` and `{tool: ...}` entries as messages."""
    return tuple(Message(_ROLES[who], said) for entry in entries for who, said in entry.items())
