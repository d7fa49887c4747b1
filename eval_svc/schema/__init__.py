"""The JSON Schemas of scenario and suite files, for editors and for the reader itself.

`python -m eval_svc.schema` writes them beside this file; a test holds the files to what stands here. The structure
is written down here, the parameters of each check come from its scorer's dataclass.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from typing import Any

from eval_svc.scorers import SCORERS
from eval_svc.taxonomy import ERROR_CLASSES, SEVERITIES

KINDS = ("happy", "new_customer", "memory", "edge", "handoff", "undesired", "attack", "replay", "simulated")
GATES = ("hard", "soft", "info")
SCOPES = ("turn", "any", "all", "dialog")
OUTCOMES = ("answered", "clarified", "ticket", "handoff", "refused")
SOURCES = ("handwritten", "transcript", "generated", "label")
ID_PATTERN = "^[a-z0-9][a-z0-9._-]{0,99}$"

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _object(
    description: str, properties: dict[str, Any], required: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    return {
        "type": "object",
        "description": description,
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
        **more,
    }


def _list(description: str, items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "description": description, "items": items, **more}


_SAID = {
    "type": "object",
    "properties": {"user": {"type": "string"}, "agent": {"type": "string"}, "tool": {"type": "string"}},
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_SCALAR = {"type": ["string", "number", "boolean"]}


def scenario_schema(*, with_checks: bool = True) -> dict[str, Any]:
    """The schema of a scenario file.

    Args:
        with_checks: describe the parameters of every installed check type too. The reader leaves that to the scorers
            themselves, whose messages are better.
    """
    checks = _checks("What must be there.", "What must not be there.")
    turn = _object(
        "One thing that the customer says.",
        {
            "user": _text("The customer's words."),
            "variants": _list("Other wordings, which must not change the verdict.", {"type": "string"}),
            **checks,
            "on_fail": {
                "enum": ["continue", "stop"],
                "description": "Whether the dialogue goes on after a hard failure here.",
            },
            "when": _object(
                "Play this turn only on a condition; a turn that is not played is not applicable.",
                {
                    "matched": _text("An outcome that was seen, or the id of an earlier check that passed."),
                    "not_matched": _text(
                        "An outcome that was not seen, or the id of an earlier check that did not pass."
                    ),
                },
                minProperties=1,
            ),
        },
        ("user",),
    )
    return {
        "$schema": _DRAFT,
        "title": "Chatmill evaluation scenario",
        **_object(
            "One scripted conversation with what must and must not come back.",
            _top(turn, checks),
            ("schema", "id", "kind"),
        ),
        "$defs": {"check": _check(with_checks), "judge": _judge()},
    }


def _top(turn: dict[str, Any], checks: dict[str, Any]) -> dict[str, Any]:
    return {
        "schema": {"const": 1, "description": "Version of this format."},
        "id": _text("Stable name; results are joined by it.", pattern=ID_PATTERN),
        "title": _text("One line for reports."),
        "kind": {"enum": list(KINDS), "description": "What sort of situation it is."},
        "severity": {"enum": list(SEVERITIES), "description": "How bad a failure is."},
        "tags": _list("Free labels to select by.", {"type": "string"}),
        "source": _object(
            "Where it came from.",
            {
                "type": {"enum": list(SOURCES)},
                "dataset": {"type": "string"},
                "conversation": _SCALAR,
                "label": _SCALAR,
                "split": {"type": "string"},
            },
            ("type",),
        ),
        "persona": _object(
            "Who the customer is.",
            {
                "name": {"type": "string"},
                "mood": {"type": "string"},
                "language": _text("ISO 639-1 code, such as en or zh."),
                "style": {"type": "string"},
            },
        ),
        "memory": _object(
            "What the agent may know before the customer speaks.",
            {
                "profile": {"type": "object", "additionalProperties": _SCALAR, "description": "Facts by name."},
                "sessions": _list(
                    "Earlier visits.",
                    _object(
                        "One visit.",
                        {"when": {"description": "A date."}, "turns": _list("What was said.", _SAID)},
                        ("turns",),
                    ),
                ),
                "facts": _list("Lines that are said to the agent as they are.", {"type": "string"}),
                "canaries": _list("Values of other customers that no reply may hold.", _SCALAR),
            },
        ),
        "policy": _list(
            "Ids of policies of the agent card that matter here; the judge gets their text.", {"type": "string"}
        ),
        "trials": {"type": "integer", "minimum": 1, "maximum": 100, "description": "How often it is played."},
        "history": _list("What was said before the first turn, in this same visit.", _SAID),
        "turns": _list("The customer's turns, in order.", turn, minItems=1),
        "final": _object(
            "What must hold of the whole dialogue.",
            {
                "outcome": {
                    "description": "How it may end.",
                    "anyOf": [
                        {"enum": list(OUTCOMES)},
                        {"type": "array", "items": {"enum": list(OUTCOMES)}, "minItems": 1},
                    ],
                },
                **checks,
                "judge": _list("Questions for the judge.", {"$ref": "#/$defs/judge"}),
            },
        ),
        "allow": _list("Error classes that the always-on detectors must not report here.", {"type": "string"}),
        "goal": _text(
            "kind simulated: what the customer wants, and what the customer knows; told to the model that plays it."
        ),
        "max_turns": {
            "type": "integer",
            "minimum": 1,
            "maximum": 40,
            "description": "kind simulated: most customer turns.",
        },
    }


def _checks(expect: str, forbid: str) -> dict[str, Any]:
    check = {"$ref": "#/$defs/check"}
    return {"expect": _list(expect, check), "forbid": _list(forbid, check)}


def _common() -> dict[str, Any]:
    return {
        "id": _text("Name of the check, unique in the scenario.", pattern=ID_PATTERN),
        "gate": {"enum": list(GATES), "description": "hard decides, soft moves the score, info is only shown."},
        "weight": {"type": "number", "exclusiveMinimum": 0, "description": "Weight in the score; 1 if absent."},
        "error": _text("Class of error that a failure is counted under.", examples=list(ERROR_CLASSES)),
        "scope": {"enum": list(SCOPES), "description": "Which replies are examined."},
    }


def _check(with_checks: bool) -> dict[str, Any]:
    base: dict[str, Any] = {
        "type": "object",
        "description": "One check.",
        "properties": {"type": _text("The check."), **_common()},
        "required": ["type"],
    }
    if not with_checks:
        return base
    base["properties"]["type"]["enum"] = SCORERS.names()
    base["allOf"] = [
        {"if": {"properties": {"type": {"const": name}}}, "then": _parameters(scorer)}
        for name, scorer in SCORERS.items()
    ]
    return base


def _judge() -> dict[str, Any]:
    return _object(
        "One yes-or-no question for the judge.",
        {**_common(), "ask": _text("The question; yes is right."), "votes": {"type": "integer", "minimum": 1}},
        ("ask",),
    )


def _parameters(scorer: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(scorer)
    fields = [f for f in dataclasses.fields(scorer) if f.init]
    needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    return {
        "description": (inspect.getdoc(scorer) or "").split("\n\n")[0],
        "properties": {"type": True, **dict.fromkeys(_common(), True), **{f.name: _of(hints[f.name]) for f in fields}},
        "required": needed,
        "additionalProperties": False,
    }


def _of(hint: Any) -> dict[str, Any]:
    """The schema of a parameter's type."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(a) for a in arguments if a is not type(None)]}
    if origin is typing.Literal:
        return {"enum": list(arguments)}
    if origin in (tuple, list):
        return {"type": "array", "items": _of(arguments[0])}
    simple = {str: "string", bool: "boolean", int: "integer", float: "number"}
    if hint in simple:
        return {"type": simple[hint]}
    return {"type": "object"} if origin is dict else {}


def suite_schema(*, with_checks: bool = True) -> dict[str, Any]:
    """The schema of a suite file, `suite.yaml`; `with_checks` as in `scenario_schema`."""
    return {
        "$schema": _DRAFT,
        "title": "Chatmill evaluation suite",
        **_object(
            "The scenarios that belong together, under one version.",
            {
                "schema": {"const": 1, "description": "Version of this format."},
                "id": _text("Name of the suite.", pattern="^[a-z0-9][a-z0-9-]{0,62}$"),
                "version": {"type": ["string", "number"], "description": "Raised whenever a verdict could change."},
                "title": _text("One line for reports."),
                "description": _text("What it is for."),
                "scenarios": _list(
                    "Files, relative to this one; * stands for any name.", {"type": "string"}, minItems=1
                ),
                "defaults": _object(
                    "What holds for scenarios that say nothing else.",
                    {
                        "trials": {"type": "integer", "minimum": 1, "maximum": 100},
                        "severity": {"enum": list(SEVERITIES)},
                        "language": {"type": "string"},
                        "tags": _list("Added to every scenario.", {"type": "string"}),
                        "allow": _list("Added to every scenario.", {"type": "string"}),
                        **_checks(
                            "Must be there: added to every turn of every scenario. An `id` gets the turn's number.",
                            "Must not be there: added to every turn of every scenario.",
                        ),
                    },
                ),
            },
            ("schema", "id", "version", "scenarios"),
        ),
        "$defs": {"check": _check(with_checks)},
    }
