"""What a conversation format is to this service, and what the formats share.

A shape says whether a decoded object is in its format and turns one into a `Conversation` with roles of ours. It merges
nothing and drops nothing but what it counts in `Conversation.annotations["dropped_parts"]`; cleaning comes later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, Protocol

from chatmill.errors import InvalidArgument
from chatmill.plugins import nearest
from dataset_svc.conversation import (
    KNOWN_ROLES,
    PERSON,
    TRANSFER_TO_HUMAN,
    Conversation,
    Message,
    Role,
    ToolCall,
    role_of,
    split_tool_calls,
)
from dataset_svc.sources.jsonl import kind_of
from dataset_svc.sources.record import Record, bad_source
from dataset_svc.text import clean, slug

DROPPED_PARTS = "dropped_parts"
"""Annotation that counts what a message held besides text (pictures, sound) and Chatmill can't train on."""


class Shape(Protocol):
    """One conversation format."""

    name: str
    """What it is called in messages and manifests."""

    def matches(self, data: Any) -> bool:
        """True if a decoded object is in this format."""

    def parse(self, record: Record) -> Conversation:
        """The conversation of a record in this format; InvalidArgument names the place and what is wrong."""


def identity(record: Record) -> tuple[str, str]:
    """Id for the dataset and id in the source: the record's own id, its key, or file and line."""
    given = next(
        (record.data[k] for k in ("id", "conversation_id", "session_id", "dialogue_id") if record.data.get(k)), ""
    )
    source_id = clean(str(given or record.key or ""))
    file = PurePath(record.place.file).name.split(".")[0]
    return slug(source_id or f"{file}-{record.place.line}"), source_id


def mapping(record: Record, key: str) -> dict[str, Any]:
    """The object under `key`, empty if it is absent or null."""
    value = record.data.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_source(
            record.place, f"{key!r} is not an object", "Make it an object or leave it out", kind="BAD_CONVERSATION"
        )
    return dict(value)


def noted(record: Record) -> dict[str, Any]:
    """The source's annotations; `label`, `language` and `human_intervention_idx` may also stand beside the messages."""
    found = mapping(record, "annotations")
    for key in ("label", "language", "human_intervention_idx"):
        if record.data.get(key) is not None:
            found.setdefault(key, record.data[key])
    return found


def message_list(record: Record, key: str) -> list[Mapping[str, Any]]:
    """The list of message objects under `key`."""
    value = record.data[key]
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise bad_message(record, number, "is not an object")
    return list(value)


def build_message(
    record: Record,
    number: int,
    *,
    spelling: Any,
    content: str,
    name: Any = None,
    kind: Any = None,
    data: Any = None,
    by_person: bool = False,
    calls: Sequence[ToolCall] = (),
    call_id: str = "",
) -> Message:
    """A message with a role of ours.

    A neutral action that calls `transfer_to_human` becomes the assistant's call, because the model has to learn it;
    calls that an assistant's text carries as `<tool_call>` are taken out of the text.
    """
    role = role_of(spelling) if isinstance(spelling, str) else None
    if role is None:
        hint = nearest(spelling, KNOWN_ROLES) if isinstance(spelling, str) else ""
        raise bad_message(
            record, number, f"has the unknown role {spelling!r}{hint}", f"Known: {', '.join(KNOWN_ROLES)}"
        )
    tool = str(name) if name else None
    if role == "tool" and tool == TRANSFER_TO_HUMAN and kind == "call":
        arguments = {str(k): v for k, v in data.items()} if isinstance(data, dict) else {}
        return Message("assistant", "", (ToolCall(TRANSFER_TO_HUMAN, arguments),), origin=(number,))
    if role == "tool":
        return Message("tool", content, name=tool, origin=(number,), call_id=call_id, data=data)
    known: Role = "assistant" if role == PERSON else role  # type: ignore[assignment]
    if known == "assistant":
        content, written = split_tool_calls(content)
        calls = (*calls, *written)
    return Message(known, content, tuple(calls), by_person=by_person or role == PERSON, origin=(number,))


def text_of(record: Record, number: int, value: Any) -> tuple[str, int]:
    """The text of a content field, and how many parts of it are not text.

    A content is a text, null (nothing was said) or a list of parts as in OpenAI's format.
    """
    if value is None:
        return "", 0
    if isinstance(value, str):
        return value, 0
    if isinstance(value, list):
        texts = [p if isinstance(p, str) else p.get("text") for p in value if isinstance(p, str | dict)]
        kept = [text for text in texts if isinstance(text, str)]
        return "\n".join(kept), len(value) - len(kept)
    raise bad_message(record, number, f"has a content that is not text but {kind_of(value)}")


def bad_message(record: Record, number: int, problem: str, remedy: str = "Mend this message") -> InvalidArgument:
    """The complaint about one message; messages are counted from 0, as in annotations."""
    return bad_source(record.place, f"message {number} {problem}", remedy, kind="BAD_CONVERSATION")


def conversation(
    record: Record,
    messages: Sequence[Message],
    *,
    context: Mapping[str, Any],
    annotations: Mapping[str, Any],
    dropped_parts: int = 0,
) -> Conversation:
    """The conversation of a record."""
    chosen, source_id = identity(record)
    marked = {**annotations, DROPPED_PARTS: dropped_parts} if dropped_parts else dict(annotations)
    return Conversation(
        chosen,
        tuple(messages),
        source_id=source_id,
        place=str(record.place),
        source_length=1 + max((m.origin[-1] for m in messages if m.origin), default=-1),
        context=context,
        annotations=marked,
    )
