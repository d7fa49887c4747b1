"""Exact duplicates: they weigh twice in training and, worse, end up on both sides of the split."""

from __future__ import annotations

from typing import ClassVar

from dataset_svc.cleaning.step import Dropped, Kept
from dataset_svc.conversation import Conversation


class Duplicates:
    """Drops a conversation whose messages all equal those of an earlier one. Remembers 16 bytes per conversation."""

    name: ClassVar[str] = "duplicates"

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def __call__(self, conversation: Conversation) -> Kept | Dropped:
        """See the class."""
        digest = bytes.fromhex(conversation.digest())
        if digest in self._seen:
            return Dropped("same messages as an earlier conversation")
        self._seen.add(digest)
        return Kept(conversation)
