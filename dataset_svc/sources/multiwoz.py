"""MultiWOZ's own format: an object of dialogues by name, each with `goal` and `log`; turns name no speaker."""

from __future__ import annotations

from typing import Any

from dataset_svc.conversation import Conversation
from dataset_svc.sources import shape
from dataset_svc.sources.record import Record

_NOT_DOMAINS = ("message", "topic")


class MultiWOZ:
    """One dialogue: log[{text, metadata, dialog_act}]; even turns are the visitor's, odd ones the clerk's."""

    name = "multiwoz"

    def matches(self, data: Any) -> bool:
        """True if `log` is a list of turns with `text`."""
        log = data.get("log") if isinstance(data, dict) else None
        return isinstance(log, list) and bool(log) and all(isinstance(t, dict) and "text" in t for t in log)

    def parse(self, record: Record) -> Conversation:
        """See `Shape.parse`."""
        messages, dropped = [], 0
        for number, turn in enumerate(shape.message_list(record, "log")):
            content, other = shape.text_of(record, number, turn["text"])
            dropped += other
            spelling = "agent" if number % 2 else "customer"
            messages.append(shape.build_message(record, number, spelling=spelling, content=content))
        goal = shape.mapping(record, "goal")
        domains = [name for name, wish in goal.items() if isinstance(wish, dict) and wish and name not in _NOT_DOMAINS]
        noted: dict[str, Any] = {"goal": goal, "domains": domains}
        if domains:
            noted["domain"] = "+".join(sorted(domains))
        return shape.conversation(
            record, messages, context={}, annotations={**noted, **shape.noted(record)}, dropped_parts=dropped
        )
