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
import logging
import shlex
import sys
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar

from chatmill.errors import FailedPrecondition, FieldViolation, InvalidArgument, NotFound

log = logging.getLogger(__name__)

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
        self._broken: dict[str, str] = {}

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
            FailedPrecondition: reason `BROKEN_PLUGIN`; it is installed, and importing it failed.
        """
        if name not in self._entries:
            self._load_external()
        if name in self._broken:
            raise FailedPrecondition(
                f"the {self.kind} {name!r} is installed and can't be loaded: {self._broken[name]}. "
                "Repair or remove it.",
                reason="BROKEN_PLUGIN",
                metadata={"kind": self.kind, "name": name},
            )
        try:
            return self._entries[name]
        except KeyError:
            raise NotFound(
                f"unknown {self.kind} {name!r}{nearest(name, self._entries) or '.'} "
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
            if point.name in self._entries:
                continue
            try:
                self._entries[point.name] = point.load()
            except Exception as error:  # whatever a stranger's module raises must not take the others down
                self._broken[point.name] = f"{type(error).__name__}: {error}"
                log.warning("the %s %r (%s) can't be loaded", self.kind, point.name, point.value, exc_info=True)


def install_command(extra: str) -> str:
    """What to type to have an extra beside this program, whichever folder and environment one is in."""
    return f"{shlex.quote(sys.executable)} -m pip install 'chatmill[{extra}]'"


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """`; did you mean 'x'?` for the known name that looks most like `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def parse_parameters(cls: type[P], values: Mapping[str, Any], *, field: str = "parameters") -> P:
    """Build the parameter dataclass `cls` from a mapping, checking names and types.

    Whole floats are taken for int fields, because JSON and `google.protobuf.Struct` know no integers; a text is taken
    for a `Path`; a mapping for a field that is a dataclass itself, whose violations keep their own path
    (`parameters.optimizer.rate`). A dataclass may check ranges in `__post_init__` by raising ValueError, which is
    reported like the rest.

    Args:
        cls: the dataclass; its fields are the known names.
        values: what the user gave.
        field: path under which violations are reported; empty for a root whose keys stand alone.

    Raises:
        InvalidArgument: with one violation per wrong field, each under `field`.
        TypeError: if `cls` is no dataclass or uses a type that can't be checked; a defect of the plug-in.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"{cls!r} is not a dataclass")
    hints = _hints(cls)
    known = {f.name: f for f in dataclasses.fields(cls) if f.init}
    violations: list[FieldViolation] = []
    checked: dict[str, Any] = {}
    prefix = f"{field}." if field else ""
    for name, value in values.items():
        if name not in known:
            violations.append(FieldViolation(f"{prefix}{name}", f"unknown parameter{nearest(str(name), known)}"))
            continue
        try:
            checked[name] = _coerce(hints[name], value, f"{prefix}{name}")
        except InvalidArgument as error:
            violations.extend(error.violations)
        except ValueError as error:
            violations.append(FieldViolation(f"{prefix}{name}", str(error)))
    for name, spec in known.items():
        if name not in values and spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING:
            violations.append(FieldViolation(f"{prefix}{name}", "is required"))
    if not violations:
        try:
            return typing.cast(P, cls(**checked))
        except ValueError as error:
            violations.append(FieldViolation(field, str(error)))
    raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations)


@lru_cache(maxsize=1024)
def _hints(cls: type[Any]) -> Mapping[str, Any]:
    """Types of the fields; a suite asks for those of the same few classes thousands of times."""
    return typing.get_type_hints(cls)


def _coerce(hint: Any, value: Any, field: str) -> Any:
    """`value` as the type that `hint` asks for; ValueError says what was expected, InvalidArgument where inside."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(arguments, value, field)
    if origin is typing.Literal:
        for choice in arguments:
            if choice == value and isinstance(choice, bool) is isinstance(value, bool):
                return choice
        raise ValueError(f"must be one of {', '.join(map(repr, arguments))}, not {value!r}")
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise ValueError(f"must be a list, not {value!r}")
        return origin(_coerce(arguments[0], v, f"{field}[{i}]") for i, v in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping, not {value!r}")
        return {_coerce(arguments[0], k, field): _coerce(arguments[1], v, f"{field}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if not isinstance(value, Mapping):
            raise ValueError(f"must be a mapping, not {value!r}")
        return parse_parameters(typing.cast(type[Any], hint), value, field=field)
    return _scalar(hint, value)


def _coerce_union(options: tuple[Any, ...], value: Any, field: str) -> Any:
    if value is None and type(None) in options:
        return None
    failures = []
    # exact types first, so that 1.0 stays a float under `int | float`
    ranked = sorted((o for o in options if o is not type(None)), key=lambda o: type(value) is not o)
    for option in ranked:
        try:
            return _coerce(option, value, field)
        except ValueError as error:
            failures.append(str(error))
    raise ValueError(" or ".join(failures))


def _scalar(hint: Any, value: Any) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
        raise ValueError(f"must be true or false, not {value!r}")
    if hint is int:
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise ValueError(f"must be a whole number, not {value!r}")
        return int(value)
    if hint is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"must be a number, not {value!r}")
        try:
            return float(value)
        except OverflowError:
            raise ValueError(f"must be a number that a float can hold, not {value!r}") from None
    if hint is str:
        if isinstance(value, str):
            return value
        raise ValueError(f"must be a text, not {value!r}")
    if hint is Path:
        if isinstance(value, str | Path) and str(value):
            return Path(value)
        raise ValueError(f"must be a path, not {value!r}")
    raise TypeError(f"parameters of type {hint!r} can't be checked; use a plain type or a dataclass")
