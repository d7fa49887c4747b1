"""One mechanism for everything that can be added: dataset classes, training methods, engines, scorers, moderators.

A kind of plug-in is one `Registry`. Built-ins register by decorator when their module is imported; third parties by an
entry point in the registry's group, which is loaded on the first name that is not a built-in (or when all are listed).
A name that came over the wire only indexes the table; nothing is ever imported because a request named it.

Every plug-in states its parameters as a dataclass; `parse_parameters` checks a mapping against it before any work
starts. This module knows no plug-in and no service.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from chatmill.errors import FieldViolation, InvalidArgument, NotFound

T = TypeVar("T")
P = TypeVar("P")


class Registry(Generic[T]):
    """The named plug-ins of one kind.

    Args:
        kind: what one entry is called in messages, for example `training method`.
        group: entry-point group for third parties, for example `chatmill.methods`.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._entries: dict[str, T] = {}
        self._external_loaded = False

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: make `name` known. Raises ValueError if it is taken, since a silent override hides a clash."""

        def add(entry: T) -> T:
            if name in self._entries and self._entries[name] is not entry:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """The plug-in of that name.

        Raises:
            NotFound: reason `UNKNOWN_PLUGIN`; the message lists what is installed and the nearest name.
        """
        if name not in self._entries:
            self._load_external()
        try:
            return self._entries[name]
        except KeyError:
            raise NotFound(
                f"unknown {self.kind} {name!r}{nearest(name, self._entries)}. "
                f"Installed: {', '.join(self.names()) or 'none'}.",
                reason="UNKNOWN_PLUGIN",
                metadata={"kind": self.kind, "name": name},
            ) from None

    def names(self) -> list[str]:
        """All installed names, sorted."""
        self._load_external()
        return sorted(self._entries)

    def items(self) -> list[tuple[str, T]]:
        """All installed plug-ins by name, sorted."""
        return [(name, self._entries[name]) for name in self.names()]

    def _load_external(self) -> None:
        if self._external_loaded:
            return
        self._external_loaded = True
        for point in entry_points(group=self.group):
            if point.name not in self._entries:
                self._entries[point.name] = point.load()


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that looks most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_parameters(cls: type[P], values: Mapping[str, Any], *, field: str = "parameters") -> P:
    """Build the parameter dataclass `cls` from a mapping, checking names and types.

    Whole floats are taken for int fields, because JSON and `google.protobuf.Struct` know no integers. A dataclass may
    check ranges in `__post_init__` by raising ValueError, which is reported like the rest.

    Raises:
        InvalidArgument: with one violation per wrong field, each under `field`.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    hints = typing.get_type_hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    violations: list[FieldViolation] = []
    checked: dict[str, Any] = {}
    for name, value in values.items():
        if name not in known:
            violations.append(FieldViolation(f"{field}.{name}", f"unknown parameter{nearest(name, known)}"))
            continue
        try:
            checked[name] = _coerce(hints[name], value)
        except ValueError as error:
            violations.append(FieldViolation(f"{field}.{name}", str(error)))
    for name, spec in known.items():
        if (
            name not in values
            and spec.default is dataclasses.MISSING
            and spec.default_factory is dataclasses.MISSING
        ):
            violations.append(FieldViolation(f"{field}.{name}", "is required"))
    if not violations:
        try:
            return typing.cast(P, cls(**checked))
        except ValueError as error:
            violations.append(FieldViolation(field, str(error)))
    raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


def _coerce(hint: Any, value: Any) -> Any:
    """`value` as the type that `hint` asks for; ValueError says what was expected."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        failures = []
        for option in (a for a in arguments if a is not type(None)):
            try:
                return _coerce(option, value)
            except ValueError as error:
                failures.append(str(error))
        raise ValueError(" or ".join(failures))
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"must be one of {', '.join(map(repr, arguments))}, not {value!r}")
        return value
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list, not {value!r}")
        return origin(_coerce(arguments[0], v) for v in value) if arguments else origin(value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping, not {value!r}")
        return {_coerce(arguments[0], k): _coerce(arguments[1], v) for k, v in value.items()}
    return _scalar(hint, value)


def _scalar(hint: Any, value: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"must be true or false, not {value!r}")
    if hint is int:
        if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
            raise ValueError(f"must be a whole number, not {value!r}")
        return int(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {value!r}")
        return float(value)
    if hint is str and not isinstance(value, str):
        raise ValueError(f"must be a text, not {value!r}")
    return value
