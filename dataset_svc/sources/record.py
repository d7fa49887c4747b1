"""What every reader of a file and every shape share: a record with its place, and errors that name it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from chatmill.errors import InvalidArgument

MAX_RECORD_BYTES = 8 * 1024 * 1024
"""Bound on one line or one conversation of a file, uncompressed. A longer one is an error: no conversation is that
long, and without a bound one broken file would take all memory."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands, for messages to people.

    Attributes:
        file: name of the file as the caller gave it.
        line: one-based line on which the record begins.
    """

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True, slots=True)
class Record:
    """One JSON object of a file.

    Attributes:
        place: where it begins.
        data: the decoded object.
        key: its key, if the file is one JSON object of conversations.
    """

    place: Place
    data: Mapping[str, Any]
    key: str | None = None


def bad_source(where: object, problem: str, remedy: str, *, kind: str) -> InvalidArgument:
    """The one form of every complaint about a file: where, what, and the way out.

    Args:
        where: a `Place`, or the name of the file.
        kind: UPPER_SNAKE constant for programs, sent as metadata `problem` beside `file` and `line`.
    """
    metadata = {"problem": kind, "file": where.file if isinstance(where, Place) else str(where)}
    if isinstance(where, Place):
        metadata["line"] = str(where.line)
    return InvalidArgument(f"{where}: {problem}. {remedy}.", reason="SOURCE_INVALID", metadata=metadata)
