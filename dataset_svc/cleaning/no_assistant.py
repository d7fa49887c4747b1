"""Conversations in which nobody answers teach nothing."""

from __future__ import annotations

from typing import ClassVar

from dataset_svc.cleaning.step import Dropped, Kept
from dataset_svc.conversation import Conversation


class NoAssistant:
    """Drops conversations without a turn of the assistant, or without one of the user."""

    name: ClassVar[str] = "no_assistant"

    def __call__(self, conversation: Conversation) -> Kept | Dropped:
        """See the class."""
        roles = {m.role for m in conversation.messages}
        if "assistant" not in roles:
            return Dropped("no turn of the assistant")
        if "user" not in roles:
            return Dropped("no turn of the user")
        return Kept(conversation)
