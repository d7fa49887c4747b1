"""ShareGPT's format: `conversations` (or `conversation`) with `from` and `value`."""

from __future__ import annotations

from typing import Any

from dataset_svc.conversation import Conversation, Message
from dataset_svc.sources import shape
from dataset_svc.sources.record import Record

_KEYS = ("conversations", "conversation")


class ShareGPT:
    """One object per conversation: conversations[{from: human or gpt, value}], and `system` beside it at will."""

    name = "sharegpt"

    def matches(self, data: Any) -> bool:
        """True if there is a list of turns with `from`."""
        turns = data.get(_key(data)) if isinstance(data, dict) else None
        return isinstance(turns, list) and bool(turns) and all(isinstance(t, dict) and "from" in t for t in turns)

    def parse(self, record: Record) -> Conversation:
        """See `Shape.parse`."""
        messages = []
        system = record.data.get("system")
        if isinstance(system, str) and system.strip():
            messages.append(Message("system", system))
        dropped = 0
        for number, turn in enumerate(shape.message_list(record, _key(record.data))):
            spelling = "tool" if turn["from"] == "function_call" else turn["from"]
            content, other = shape.text_of(record, number, turn.get("value"))
            dropped += other
            messages.append(shape.build_message(record, number, spelling=spelling, content=content))
        return shape.conversation(
            record,
            messages,
            context=shape.mapping(record, "context"),
            annotations=shape.noted(record),
            dropped_parts=dropped,
        )


def _key(data: Any) -> str:
    return _KEYS[0] if _KEYS[0] in data else _KEYS[1]
