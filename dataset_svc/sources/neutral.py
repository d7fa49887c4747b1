"""The neutral shape: `messages` with roles customer, agent and action, beside `context` and `annotations`."""

from __future__ import annotations

from typing import Any

from dataset_svc.conversation import Conversation
from dataset_svc.sources import shape
from dataset_svc.sources.record import Record

_ROLES = frozenset({"customer", "agent", "action", "human_agent", "live_agent", "supervisor", "client", "visitor"})


class Neutral:
    """One conversation: messages[{role, content, name?, kind?, data?}], id?, context?, annotations?, label?."""

    name = "neutral"

    def matches(self, data: Any) -> bool:
        """True if there is a message with one of the roles of customer service."""
        messages = data.get("messages") if isinstance(data, dict) else None
        if not isinstance(messages, list):
            return False
        return any(isinstance(m, dict) and str(m.get("role")).lower() in _ROLES for m in messages)

    def parse(self, record: Record) -> Conversation:
        """See `Shape.parse`."""
        messages, dropped = [], 0
        for number, message in enumerate(shape.message_list(record, "messages")):
            content, other = shape.text_of(record, number, message.get("content"))
            dropped += other
            messages.append(
                shape.build_message(
                    record,
                    number,
                    spelling=message.get("role"),
                    content=content,
                    name=message.get("name"),
                    kind=message.get("kind"),
                    data=message.get("data"),
                    by_person=message.get("by_person") is True,
                )
            )
        return shape.conversation(
            record,
            messages,
            context=shape.mapping(record, "context"),
            annotations={**_domain(record), **shape.noted(record)},
            dropped_parts=dropped,
        )


def _domain(record: Record) -> dict[str, Any]:
    domain = record.data.get("domain")
    return {"domain": domain} if isinstance(domain, str) and domain else {}
