"""What a parameter dataclass says about itself, for people who choose among plug-ins."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from dataclasses import dataclass
from typing import Any

_ENTRY = re.compile(r"^    (\w+): (.+(?:\n {6,}\S.*)*)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        name: its name.
        type: its type as it is written in the class.
        description: its entry in the `Attributes:` section of the class docstring.
        default_json: its default as JSON; empty if it is required.
    """

    name: str
    type: str
    description: str
    default_json: str


def describe(cls: type[Any]) -> list[Parameter]:
    """The parameters that a dataclass takes, in order."""
    _, _, attributes = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    described = {name: " ".join(text.split()) for name, text in _ENTRY.findall(attributes)}
    return [
        Parameter(
            spec.name,
            spec.type if isinstance(spec.type, str) else getattr(spec.type, "__name__", str(spec.type)),
            described.get(spec.name, ""),
            _default(spec),
        )
        for spec in dataclasses.fields(cls)
        if spec.init
    ]


def _default(spec: dataclasses.Field[Any]) -> str:
    if spec.default is not dataclasses.MISSING:
        return json.dumps(spec.default, default=str)
    if spec.default_factory is not dataclasses.MISSING:
        return json.dumps(spec.default_factory(), default=str)
    return ""
