"""Several messages of one speaker in a row become one: trainers skip or refuse dialogues that don't alternate."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from dataset_svc.cleaning.step import Kept
from dataset_svc.conversation import Conversation, Message


class Bursts:
    """Joins neighbouring messages of the same speaker with a line break.

    Tool messages stay apart, and so does what follows a tool call, because a call ends a turn. What the agent's side
    says after a call of `transfer_to_human` is marked as written by a person.
    """

    name: ClassVar[str] = "bursts"

    def __call__(self, conversation: Conversation) -> Kept:
        """Never drops."""
        merged: list[Message] = []
        handed_over = False
        for message in conversation.messages:
            if handed_over and message.role == "assistant":
                message = replace(message, by_person=True)
            if merged and _same_turn(merged[-1], message):
                merged[-1] = _join(merged[-1], message)
            else:
                merged.append(message)
            handed_over = handed_over or message.handover is not None
        if len(merged) == len(conversation.messages) and not handed_over:
            return Kept(conversation)
        change = "merged messages of one speaker in a row" if len(merged) < len(conversation.messages) else None
        return Kept(replace(conversation, messages=tuple(merged)), change)


def _same_turn(before: Message, after: Message) -> bool:
    return (
        before.role == after.role
        and before.role != "tool"
        and before.by_person == after.by_person
        and not before.tool_calls
    )


def _join(before: Message, after: Message) -> Message:
    texts = [text for text in (before.content.strip(), after.content.strip()) if text]
    return replace(
        before, content="\n".join(texts), tool_calls=after.tool_calls, origin=(*before.origin, *after.origin)
    )
