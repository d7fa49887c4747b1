"""YAML that remembers where everything stood, so that an error can name the file and the line.

Only the safe subset is read: no tags, no aliases (an alias can make a small file explode), no duplicate keys
(PyYAML would let the last one win in silence). This module knows nothing of what a file is for: recipes, agent cards
and scenarios are read alike.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from chatmill.errors import FieldViolation, InvalidArgument, NotFound

Step = str | int
Location = tuple[Step, ...]
"""The way to a value: keys and list positions from the root."""

MAX_DEPTH = 1000
"""libyaml's loader, which is ten times as fast, gets only what can't be nested deeper: it ends the process where
Python's raises."""

MAX_BYTES = 4 * 1024 * 1024
"""Larger files are refused; what people write by hand is far smaller."""


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed file and the line of each value in it.

    Attributes:
        data: the root value, built of dict, list, str, int, float, bool, None and dates.
        name: what messages call the file.
        lines: location to line, counted from 1.
    """

    data: Any
    name: str
    lines: Mapping[Location, int] = field(default_factory=dict)

    def line(self, location: Location) -> int:
        """The line of `location`, or of its nearest parent that stands in the file."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def problem(self, location: Location, description: str) -> FieldViolation:
        """One violation, its field written as `name:line: turns[0].expect[1].type`."""
        return FieldViolation(f"{self.name}:{self.line(location)}: {spell(location)}".rstrip(": "), description)


def spell(location: Location) -> str:
    """`('turns', 0, 'user')` as `turns[0].user`."""
    text = ""
    for step in location:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def refuse(problems: Iterable[FieldViolation], *, reason: str = "INVALID_FILE") -> InvalidArgument:
    """One error out of all that is wrong, so that a file is not fixed one line per attempt."""
    found = tuple(problems)
    shown = [f"{p.field}: {p.description}" for p in found[:20]]
    if len(found) > 20:
        shown.append(f"and {len(found) - 20} more")
    return InvalidArgument("\n".join(shown), violations=found, reason=reason)


def read(path: Path) -> Document:
    """Parse the file at `path`.

    Raises:
        NotFound: there is no such file, or it is a folder.
        InvalidArgument: not a regular file, not readable, not UTF-8, not YAML, too large, or outside the safe subset;
            names the line.
    """
    try:
        raw = _content(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"{path}: there is no such file", reason="FILE_NOT_FOUND") from None
    except OSError as error:
        raise refuse([FieldViolation(str(path), f"can't be read: {error.strerror}")]) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if raw.startswith(b"\x1f\x8b"):
            raise refuse([FieldViolation(str(path), "is compressed with gzip; this must be a YAML file")]) from None
        line = raw[: error.start].count(b"\n") + 1
        raise refuse([FieldViolation(f"{path}:{line}", "is not UTF-8; save the file as UTF-8")]) from None
    return parse(text, str(path))


def _content(path: Path) -> bytes:
    """The bytes of a regular file: a device may have no end, and nobody may ever write to a pipe."""
    # without O_NONBLOCK, opening a pipe waits for its writer
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    found = os.fstat(file)
    if stat.S_ISDIR(found.st_mode):
        os.close(file)
        raise NotFound(f"{path}: is a folder; name a file in it", reason="FILE_NOT_FOUND")
    with os.fdopen(file, "rb") as opened:
        if not stat.S_ISREG(found.st_mode):
            raise refuse([FieldViolation(str(path), "is a pipe or a device; name a regular file")])
        raw = opened.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        size = max(found.st_size, len(raw))
        raise refuse([FieldViolation(str(path), f"is {size} bytes; at most {MAX_BYTES} are read, split the file")])
    return raw


def parse(text: str, name: str = "<text>") -> Document:
    """Parse `text`; `name` is what messages call it. Raises InvalidArgument as `read` does."""
    try:
        loader = _loader(text)
    except (yaml.reader.ReaderError, UnicodeEncodeError) as error:
        position = error.start if isinstance(error, UnicodeEncodeError) else error.position
        line = text[:position].count("\n") + 1
        raise refuse([FieldViolation(f"{name}:{line}", f"is not valid YAML: {error.reason}")]) from None
    try:
        node = loader.get_single_node()
        builder = _Builder(name, loader)
        data = builder.value(node, ()) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        # What is missing at the end is reported one line after the last.
        line = min(mark.line, text.rstrip("\n").count("\n")) + 1 if mark else 1
        told = " ".join(part for part in (error.context, error.problem) if part)
        raise refuse([FieldViolation(f"{name}:{line}", f"is not valid YAML: {told}")]) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refuse([FieldViolation(name, f"is not valid YAML: {error}")]) from None
    finally:
        loader.dispose()
    return Document(data, name, builder.lines)


def _loader(text: str) -> Any:
    """The fastest loader that is safe for the text; an upper bound of its depth is enough to choose."""
    fast: Any = getattr(yaml, "CSafeLoader", None)
    opened = text.count("[") + text.count("{")
    indented = max((len(line) - len(line.lstrip(" \t-?:")) for line in text.splitlines()), default=0)
    return fast(text) if fast is not None and opened + indented < MAX_DEPTH else yaml.SafeLoader(text)


class _Builder:
    """Turns a node tree into plain values and notes the line of each."""

    def __init__(self, name: str, loader: Any) -> None:
        self.name = name
        self.loader = loader
        self.lines: dict[Location, int] = {}
        self._seen: set[int] = set()

    def value(self, node: yaml.Node, at: Location) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(at, line)
        if id(node) in self._seen:
            raise self._refuse(self.lines[at], at, "is an alias (*name); write the value out")
        self._seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*at, i)) for i, child in enumerate(node.value)]
        return self.loader.construct_object(node)

    def _mapping(self, node: yaml.MappingNode, at: Location) -> dict[str, Any]:
        built: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refuse(line, at, "has a key that is not a text")
            key = str(key_node.value)
            if key in built:
                raise self._refuse(line, (*at, key), "is given twice; keep one")
            self.lines[(*at, key)] = line
            built[key] = self.value(value_node, (*at, key))
        return built

    def _refuse(self, line: int, at: Location, description: str) -> InvalidArgument:
        return refuse([FieldViolation(f"{self.name}:{line}: {spell(at)}".rstrip(": "), description)])


def locate(field: str) -> Location:
    """`turns[0].user` as `('turns', 0, 'user')`: the way back from `spell`."""
    steps: list[Step] = []
    for part in field.split("."):
        name, *positions = part.split("[")
        if name:
            steps.append(name)
        steps.extend(int(position.rstrip("]")) for position in positions)
    return tuple(steps)
