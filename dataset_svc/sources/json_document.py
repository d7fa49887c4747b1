"""One JSON document that holds many conversations: a list, an object of conversations by key, or a list inside an
object.

Reads value by value, so a file of any size takes the memory of its longest conversation. Which object is a conversation
is told by the caller's `is_conversation`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from dataset_svc import strict_json
from dataset_svc.sources.files import SourceFile
from dataset_svc.sources.jsonl import incomplete, kind_of, not_json
from dataset_svc.sources.record import MAX_RECORD_BYTES, Place, Record, bad_source
from dataset_svc.text import scrub

_SPACE = " \t\r\n"


class _Scanner:
    """Takes one JSON value after another from a stream of text, and knows the line it stands on."""

    def __init__(self, file: SourceFile) -> None:
        self._blocks = file.blocks()
        self._shown = file.shown
        self._text = ""
        self._at = 0
        self._line = 1
        self._decoder = strict_json.decoder()
        self.last_size = 0
        """Characters of the value taken last."""

    def place(self) -> Place:
        """Where the next character stands."""
        return Place(self._shown, self._line + self._text.count("\n", 0, self._at))

    def peek(self) -> str:
        """The next character that is not white space, or an empty text at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def take(self, allowed: str) -> str:
        """The next character, which must be one of `allowed`."""
        found = self.peek()
        if not found:
            raise self._cut_off()
        if found not in allowed:
            expected = " or ".join(repr(c) for c in allowed)
            raise bad_source(
                self.place(),
                f"is not JSON (expected {expected})",
                "Mend the file, or export it again",
                kind="NOT_JSON",
            )
        self._at += 1
        return found

    def value(self) -> Any:
        """The next value, decoded."""
        first = self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if len(self._text) - self._at <= MAX_RECORD_BYTES and self._more():
                    continue
                if len(self._text) - self._at > MAX_RECORD_BYTES:
                    raise self.too_long() from None
                line = Place(self._shown, self._line + self._text.count("\n", 0, error.pos))
                raise not_json(line, error, cut_off=incomplete(error, self._text)) from None
            except RecursionError:
                raise bad_source(self.place(), "is nested too deeply", "Mend this record", kind="NOT_JSON") from None
            except ValueError as error:
                raise bad_source(
                    self.place(), f"is not usable JSON ({error})", "Mend this record", kind="NOT_JSON"
                ) from None
            # A number may go on in the next block (`1` of `12`, `1e+` of `1e+5`); all else has an end of its own.
            if first in '{["' or end < len(self._text) - 2 or not self._more():
                break
        taken, self._at = self._text[self._at : end], end
        self.last_size = len(taken)
        return scrub(value) if strict_json.may_have_surrogate(taken) else value

    def _more(self) -> bool:
        block = next(self._blocks, None)
        if block is None:
            return False
        self._line += self._text.count("\n", 0, self._at)
        # A value that did not fit is decoded again from its start, so the text must grow by doubling, not by one block.
        parts, wanted = [self._text[self._at :], block], len(self._text) - self._at
        size = len(block)
        while size < wanted and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            size += len(block)
        self._text, self._at = "".join(parts), 0
        return True

    def too_long(self) -> Exception:
        """The complaint about a value, or an object that holds no conversations, beyond the bound."""
        return bad_source(
            self.place(),
            f"one value is longer than {MAX_RECORD_BYTES:,} bytes",
            "Make the file a list of conversations",
            kind="RECORD_TOO_LONG",
        )

    def _cut_off(self) -> Exception:
        return bad_source(
            self.place(),
            "the file is cut off here",
            "Copy or export it again",
            kind="TRUNCATED",
        )


def read(file: SourceFile, is_conversation: Callable[[Any], bool]) -> Iterator[Record]:
    """The conversations of a JSON document.

    Raises:
        InvalidArgument: the document is not JSON, is cut off, has something behind its end, or no conversations in it.
    """
    scanner = _Scanner(file)
    if scanner.peek() == "[":
        for place, value in _elements(scanner):
            yield _record(place, value)
    else:
        yield from _object(scanner, is_conversation)
    if scanner.peek():
        raise bad_source(
            scanner.place(),
            "something follows the end of the JSON document",
            "Write one document per file, or one object per line (JSONL)",
            kind="NOT_JSON",
        )


def _elements(scanner: _Scanner) -> Iterator[tuple[Place, Any]]:
    """The elements of the list that is next, each with its place."""
    scanner.take("[")
    separator = scanner.take("]") if scanner.peek() == "]" else ","
    while separator == ",":
        yield _next(scanner)
        separator = scanner.take(",]")


def _object(scanner: _Scanner, is_conversation: Callable[[Any], bool]) -> Iterator[Record]:
    """The conversations of an object: its values, the elements of a list among its values, or the object itself."""
    start = scanner.place()
    fields: dict[str, Any] = {}
    found, size = False, 0
    scanner.take("{")
    separator = scanner.take("}") if scanner.peek() == "}" else ","
    while separator == ",":
        if scanner.peek() != '"':
            scanner.take('"')
        key = scanner.value()
        scanner.take(":")
        if scanner.peek() == "[":
            items = _elements(scanner)
            first = next(items, None)
            if first is not None and is_conversation(first[1]):
                found = True
                yield _record(*first)
                for place, value in items:
                    yield _record(place, value)
            else:
                fields[key] = [] if first is None else [first[1]]
                for _, value in items:
                    fields[key].append(value)
                    size += scanner.last_size
                    if size > MAX_RECORD_BYTES:
                        raise scanner.too_long()
        else:
            place, value = _next(scanner)
            if is_conversation(value):
                found = True
                yield Record(place, value, key)
            else:
                fields[key] = value
                size += scanner.last_size
                if size > MAX_RECORD_BYTES:
                    raise scanner.too_long()
        separator = scanner.take(",}")
    if not found:
        yield Record(start, fields)


def _next(scanner: _Scanner) -> tuple[Place, Any]:
    scanner.peek()
    return scanner.place(), scanner.value()


def _record(place: Place, value: Any) -> Record:
    if not isinstance(value, dict):
        raise bad_source(
            place,
            f"this element is {kind_of(value)}, not an object",
            "Each element must be one conversation",
            kind="NOT_A_CONVERSATION",
        )
    return Record(place, value)
