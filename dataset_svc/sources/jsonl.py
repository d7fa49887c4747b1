"""JSON Lines: one object per line. Reads line by line and knows nothing of conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from chatmill.errors import InvalidArgument
from dataset_svc import strict_json
from dataset_svc.sources.files import SourceFile
from dataset_svc.sources.record import Place, Record, bad_source


def read(file: SourceFile) -> Iterator[Record]:
    """The objects of a JSON Lines file; blank lines are passed over.

    Raises:
        InvalidArgument: a line is not a JSON object, or the last one is cut off; names file and line.
    """
    for number, line, ended in file.lines():
        if not line.strip():
            continue
        place = Place(file.shown, number)
        value = decode(line, place, cut_off_possible=not ended)
        if not isinstance(value, dict):
            raise bad_source(
                place,
                f"this line is {kind_of(value)}, not an object",
                "Each line must be one conversation as a JSON object",
                kind="NOT_A_CONVERSATION",
            )
        yield Record(place, value)


def decode(text: str, place: Place, *, cut_off_possible: bool) -> Any:
    """The JSON value that `text` holds, fit to be written as UTF-8.

    Args:
        cut_off_possible: no line break follows, so a value that is not complete was cut off rather than mistyped.

    Raises:
        InvalidArgument: it is not JSON; says at which column and why.
    """
    try:
        return strict_json.loads(text)
    except json.JSONDecodeError as error:
        raise not_json(place, error, cut_off=cut_off_possible and incomplete(error, text)) from None
    except ValueError as error:
        raise bad_source(place, f"is not usable JSON ({error})", "Mend this record", kind="NOT_JSON") from None


def incomplete(error: json.JSONDecodeError, text: str) -> bool:
    """True if decoding failed only because `text` ends too soon."""
    return error.pos >= len(text.rstrip()) or error.msg.startswith(
        ("Unterminated string", "Invalid \\escape", "Invalid \\u")
    )


def not_json(place: Place, error: json.JSONDecodeError, *, cut_off: bool) -> InvalidArgument:
    """The complaint about text that is not JSON."""
    if cut_off:
        return bad_source(
            place,
            "the file is cut off in the middle of this record",
            "Copy or export it again, or remove this last record",
            kind="TRUNCATED",
        )
    return bad_source(
        place,
        f"is not JSON ({error.msg.removesuffix(' at')} at column {error.colno})",
        "Each line must be a JSON object; or the file must be one JSON list or object",
        kind="NOT_JSON",
    )


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names[type(value)]
