"""Conversations that no model here can take, and that would not fit one message of the wire."""

from __future__ import annotations

from typing import ClassVar

from dataset_svc.cleaning.step import Dropped, Kept
from dataset_svc.conversation import Conversation

MAX_CHARACTERS = 100_000
MAX_MESSAGES = 1_000


class OverLong:
    """Drops conversations beyond 100,000 characters or 1,000 messages.

    Cutting to a model's context is training's matter.
    """

    name: ClassVar[str] = "over_long"

    def __call__(self, conversation: Conversation) -> Kept | Dropped:
        """See the class."""
        if len(conversation.messages) > MAX_MESSAGES:
            return Dropped(f"more than {MAX_MESSAGES:,} messages")
        if sum(len(m.canonical()) for m in conversation.messages) > MAX_CHARACTERS:
            return Dropped(f"more than {MAX_CHARACTERS:,} characters")
        return Kept(conversation)
