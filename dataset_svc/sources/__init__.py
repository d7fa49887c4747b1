"""From files to conversations: what a file is, is told by its content, never by its name.

A file has a container (JSON Lines, or one JSON document; each plain or gzip) and a shape (`SHAPES`). To add a format,
add a file with a `Shape` beside the others and name it in `SHAPES`; more particular shapes come first. A file must be
of one shape throughout, because a line in another shape is a mistake that would go unseen otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset_svc import strict_json
from dataset_svc.conversation import Conversation
from dataset_svc.sources import json_document, jsonl
from dataset_svc.sources.files import SourceFile
from dataset_svc.sources.multiwoz import MultiWOZ
from dataset_svc.sources.neutral import Neutral
from dataset_svc.sources.openai_messages import OpenAIMessages
from dataset_svc.sources.record import MAX_RECORD_BYTES, Place, Record, bad_source
from dataset_svc.sources.shape import Shape
from dataset_svc.sources.sharegpt import ShareGPT

SHAPES: tuple[Shape, ...] = (Neutral(), ShareGPT(), MultiWOZ(), OpenAIMessages())

_SHOWN_KEYS = 6


@dataclass(slots=True)
class Reading:
    """How far a file has been read.

    Attributes:
        file: its name as the caller gave it.
        shape: name of its shape, empty until the first conversation.
        bytes_read: bytes of the file read, of `bytes_total`.
        conversations: conversations found.
    """

    file: str
    bytes_total: int = 0
    bytes_read: int = 0
    shape: str = ""
    conversations: int = 0


def read_conversations(path: Path, shown: str, *, own: Shape | None = None) -> Iterator[tuple[Conversation, Reading]]:
    """The conversations of one file, with roles mapped and nothing cleaned, and how far it has been read.

    Args:
        path: the file; it has been checked to lie under an allowed root.
        shown: name to use in messages.
        own: the shape that a client's dataset class reads itself; without it the shape is told by content.

    Raises:
        NotFound, PermissionDenied: the file is missing or unreadable.
        InvalidArgument: it is empty, not JSON, cut off, holds no conversations, or mixes shapes; names file and line.
    """
    shapes = (own,) if own else SHAPES
    with SourceFile(path, shown) as file:
        reading = Reading(shown, file.bytes_total)
        chosen: Shape | None = None
        for record in _records(file, lambda data: _shape_of(data, shapes) is not None):
            found = _shape_of(record.data, shapes)
            # A conversation without messages is of any shape; cleaning drops and counts it.
            found = found or (chosen or shapes[0] if record.data.get("messages") == [] else None)
            if found is None:
                raise _not_a_conversation(record)
            if chosen is not None and found is not chosen:
                raise bad_source(
                    record.place,
                    f"this conversation is in the {found.name} format, but the file began as {chosen.name}",
                    "Put each format into a file of its own",
                    kind="MIXED_FORMATS",
                )
            chosen = found
            reading.shape = found.name
            reading.bytes_read = file.bytes_read
            reading.conversations += 1
            yield found.parse(record), reading
        reading.bytes_read = file.bytes_total
        if not reading.conversations:
            raise bad_source(shown, "holds no conversations", "Export the conversations again", kind="EMPTY")


def _shape_of(data: Any, shapes: tuple[Shape, ...]) -> Shape | None:
    return next((shape for shape in shapes if shape.matches(data)), None)


def _records(file: SourceFile, is_conversation: Callable[[Any], bool]) -> Iterator[Record]:
    document = _is_document(file, is_conversation)
    file.rewind()
    return json_document.read(file, is_conversation) if document else jsonl.read(file)


def _is_document(file: SourceFile, is_conversation: Callable[[Any], bool]) -> bool:
    """True for one JSON document, False for JSON Lines; told by the first line that is not blank."""
    start, line_number = _beginning(file)
    if not start:
        raise bad_source(file.shown, "is empty but for white space", "Export it again", kind="EMPTY")
    if start[0] not in "[{":
        raise bad_source(
            Place(file.shown, line_number),
            # The beginning is not shown: whoever names a file need not be one who may read it.
            f"is not JSON (the first character of line {line_number} is neither {{ nor [)",
            "Save the conversations as JSON, or as JSONL with one conversation per line; either may be gzip",
            kind="NOT_JSON",
        )
    if start[0] == "[":
        return True
    line, newline, rest = start.partition("\n")
    try:
        first = strict_json.loads(line)
    except json.JSONDecodeError as error:
        # A line that ends too soon is the first of an indented document, or is longer than the block.
        return jsonl.incomplete(error, line) and not (newline and rest.lstrip().startswith("{"))
    except ValueError:
        return False
    return not rest.strip() and not is_conversation(first)


def _beginning(file: SourceFile) -> tuple[str, int]:
    """The text from its first visible character on, and the number of that line.

    If it begins like an object, it goes at least to the end of the line, because that tells lines from a document.
    """
    text, line = "", 1
    for block in file.blocks():
        text += block
        if not text.strip():
            line, text = line + text.count("\n"), ""
        elif text.lstrip()[0] != "{" or "\n" in text.lstrip() or len(text) > MAX_RECORD_BYTES:
            break
    start = text.lstrip()
    return start, line + text[: len(text) - len(start)].count("\n")


def _not_a_conversation(record: Record) -> Exception:
    keys = ", ".join(map(repr, list(record.data)[:_SHOWN_KEYS])) or "none"
    more = ", ..." if len(record.data) > _SHOWN_KEYS else ""
    return bad_source(
        record.place,
        f"is JSON, but not a conversation in a known format (its keys: {keys}{more})",
        "Known: neutral (messages with customer and agent), openai (messages with user and assistant), "
        "sharegpt (conversations with from and value), multiwoz (log with text). "
        "For another format write a dataset class with its own `read`",
        kind="NOT_A_CONVERSATION",
    )


__all__ = ["SHAPES", "Reading", "Shape", "read_conversations"]
