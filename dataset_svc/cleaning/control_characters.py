"""Control characters and halves of characters go; they carry nothing and break templates, logs and protobuf."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dataset_svc.cleaning.step import Kept
from dataset_svc.conversation import Conversation
from dataset_svc.text import clean


class ControlCharacters:
    """Removes control characters, makes line breaks `\\n`, replaces unpaired surrogates by U+FFFD."""

    name: ClassVar[str] = "control_characters"

    def __call__(self, conversation: Conversation) -> Kept:
        """Never drops."""
        texts = [clean(m.content) for m in conversation.messages]
        names = [clean(m.name) if m.name else m.name for m in conversation.messages]
        if all(t == m.content and n == m.name for t, n, m in zip(texts, names, conversation.messages, strict=True)):
            return Kept(conversation)
        messages = [replace(m, content=t, name=n) for t, n, m in zip(texts, names, conversation.messages, strict=True)]
        return Kept(replace(conversation, messages=tuple(messages)), "removed control characters or mended line breaks")
