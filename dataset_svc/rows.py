"""Items as lines of JSON, and back. Knows no file.

A line is `{"item": {...}, "source": {...}}`: `item` is what training and evaluation see, and what the dataset's
digest is over; `source` is what only the dataset's class needs (context, annotations, where it came from).
"""

from __future__ import annotations

import json
from typing import Any

from dataset_svc.conversation import Conversation, Message, ToolCall
from dataset_svc.dataset import Item
from dataset_svc.facts import Fact
from dataset_svc.handover import Handover


def encode(item: Item) -> tuple[str, str]:
    """The two halves of an item's line: canonical `item` and `source`, as JSON."""
    conversation = item.conversation
    seen = {
        "id": item.id,
        "messages": [_message(m) for m in item.messages],
        "facts": [[fact.since, fact.text] for fact in item.facts],
        "label": item.label,
        "handover": [item.handover.index, item.handover.reason] if item.handover else None,
        "language": item.language,
        "split": item.split,
    }
    source = {
        "id": conversation.source_id,
        "place": conversation.place,
        "length": conversation.source_length,
        "origins": [m.origin for m in item.messages],
        "data": {i: m.data for i, m in enumerate(item.messages) if m.data is not None},
        "context": conversation.context,
        "annotations": conversation.annotations,
    }
    return _dump(seen), _dump(source)


def line(seen: str, source: str) -> bytes:
    """The line of the two halves, with its line break."""
    return f'{{"item":{seen},"source":{source}}}\n'.encode()


def decode(raw: bytes) -> Item:
    """The item of a line; its `rules` are not set."""
    row = json.loads(raw)
    seen, source = row["item"], row["source"]
    data = source["data"]
    messages = tuple(
        _read_message(m, tuple(origin), data.get(str(i)))
        for i, (m, origin) in enumerate(zip(seen["messages"], source["origins"], strict=True))
    )
    conversation = Conversation(
        seen["id"],
        messages,
        source_id=source["id"],
        place=source["place"],
        source_length=source["length"],
        context=source["context"],
        annotations=source["annotations"],
    )
    return Item(
        conversation,
        seen["label"],
        Handover(*seen["handover"]) if seen["handover"] else None,
        tuple(Fact(text, since) for since, text in seen["facts"]),
        seen["language"],
        seen["split"],
    )


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _message(message: Message) -> dict[str, Any]:
    row: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        row["tool_calls"] = [[c.name, c.arguments, c.id] for c in message.tool_calls]
    if message.name:
        row["name"] = message.name
    if message.call_id:
        row["call_id"] = message.call_id
    if message.by_person:
        row["by_person"] = True
    return row


def _read_message(row: dict[str, Any], origin: tuple[int, ...], data: Any) -> Message:
    return Message(
        row["role"],
        row["content"],
        tool_calls=tuple(ToolCall(*call) for call in row.get("tool_calls", ())),
        name=row.get("name"),
        call_id=row.get("call_id", ""),
        by_person=row.get("by_person", False),
        origin=origin,
        data=data,
    )
