"""Messages without text, and conversations without messages."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dataset_svc.cleaning.step import Dropped, Kept
from dataset_svc.conversation import Conversation


class EmptyMessages:
    """Takes out messages that neither say nor call anything; drops a conversation of which nothing is left."""

    name: ClassVar[str] = "empty"

    def __call__(self, conversation: Conversation) -> Kept | Dropped:
        """See the class."""
        kept = tuple(m for m in conversation.messages if not m.empty)
        if not kept:
            return Dropped("no message with text")
        if len(kept) == len(conversation.messages):
            return Kept(conversation)
        return Kept(replace(conversation, messages=kept), "took out messages without text")
