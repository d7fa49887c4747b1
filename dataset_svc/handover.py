"""Where in a conversation a person should have taken over, and why.

Reads the signs that a log carries itself: an annotation, a call of `transfer_to_human`, messages written by a
person. It guesses nothing from the wording; a client's class may.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from dataset_svc.conversation import TRANSFER_TO_HUMAN, Conversation, Message, ToolCall

UNKNOWN_REASON = "unspecified"
"""Reason of a handover for which the source gives none."""


@dataclass(frozen=True, slots=True)
class Handover:
    """A turn at which a person should have taken over.

    Attributes:
        index: index into the conversation's messages.
        reason: why, as the argument of `transfer_to_human`.
    """

    index: int
    reason: str = UNKNOWN_REASON


def find(conversation: Conversation) -> Handover | None:
    """The handover that the source marks, or None.

    Looked for in this order: `annotations.human_intervention_idx`; `annotations.handover` as an index, `[index,
    reason]` or `{index, reason}`; the first call of `transfer_to_human`; the first message by a person. Annotated
    indexes count the source's messages and are translated to what is left after cleaning.

    Raises:
        ValueError: an annotation is there and is none of these, or points at no message.
    """
    noted = conversation.annotations
    for key in ("human_intervention_idx", "handover"):
        value = noted.get(key)
        if value is not None and value is not False:
            found = _annotated(conversation, key, value)
            if found is not None:
                return found
    for index, message in enumerate(conversation.messages):
        if message.handover is not None:
            return Handover(index, reason_of(message.handover))
    for index, message in enumerate(conversation.messages):
        if message.by_person:
            return Handover(index)
    return None


def reason_of(call: ToolCall) -> str:
    """The reason that a call of `transfer_to_human` gives."""
    reason = call.arguments.get("reason")
    return reason if isinstance(reason, str) and reason.strip() else UNKNOWN_REASON


def at_assistant_turn(conversation: Conversation, found: Handover) -> tuple[Conversation, Handover]:
    """The same handover at the turn where the assistant would have spoken.

    A mark on a user's or a tool's message means the assistant's next one. A mark on what a person wrote means the
    assistant's turn before it, which then ends with the call; the person's words are not for the model to say. Where
    there is no such turn, one is added that does nothing but call `transfer_to_human`, since this is what should
    have come.
    """
    messages = conversation.messages
    index = next((i for i in range(found.index, len(messages)) if messages[i].role == "assistant"), len(messages))
    if index < len(messages) and not messages[index].by_person:
        return conversation, replace(found, index=index)
    call = ToolCall(TRANSFER_TO_HUMAN, {"reason": found.reason})
    before = messages[index - 1] if index else None
    if before is not None and before.role == "assistant" and not before.by_person and index < len(messages):
        index -= 1
        calls = before.tool_calls if before.handover else (*before.tool_calls, call)
        changed = (*messages[:index], replace(before, tool_calls=calls), *messages[index + 1 :])
    else:
        changed = (*messages[:index], Message("assistant", "", (call,)), *messages[index:])
    return replace(conversation, messages=changed), replace(found, index=index)


def _annotated(conversation: Conversation, key: str, value: Any) -> Handover | None:
    reason = None
    if isinstance(value, dict):
        value, reason = value.get("index"), value.get("reason")
    elif isinstance(value, list) and len(value) == 2:
        value, reason = value
    if value == -1 and not isinstance(value, bool):
        return None
    if value is True:  # the log says that there was one, and not where
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"annotations.{key} must be the index of a message, [index, reason] or {{index, reason}}")
    if value >= conversation.source_length:
        raise ValueError(
            f"annotations.{key} is {value}, but the last message is number {conversation.source_length - 1}"
        )
    index = conversation.index_of(value)
    if not isinstance(reason, str) or not reason.strip():
        call = next((m.handover for m in conversation.messages[index:] if m.handover), None)
        reason = reason_of(call) if call else UNKNOWN_REASON
    return Handover(index, reason)
