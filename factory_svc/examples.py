"""From a conversation of a log to the messages that a model learns from.

The system message is the operator's prompt with the item's facts. The turn at which a person should have taken over
becomes an assistant turn that ends with the tool call `transfer_to_human`, and the conversation ends there, because
what a person said afterwards is not for the model to learn. What follows the last assistant turn is cut. All of it is
counted.

This module knows neither tokenizers nor where items come from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chatmill.prompts import system_message
from factory_svc.task import Message, Messages

HANDOVER_TOOL = "transfer_to_human"
ToolMessages = Literal["include", "skip"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool: its name and its arguments as a JSON object."""

    name: str
    arguments_json: str = "{}"


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a log: who speaks (user, assistant, tool, system), the text, and the tool calls after it."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """One conversation of a dataset.

    Attributes:
        name: `datasets/{dataset}/items/{item}`.
        turns: in order of time.
        facts: what was known about the customer.
        human_intervention_idx: index into `turns` at which a person should have taken over, or None.
        human_intervention_reason: why.
        language: BCP 47, or empty.
    """

    name: str
    turns: tuple[Turn, ...]
    facts: tuple[str, ...] = ()
    human_intervention_idx: int | None = None
    human_intervention_reason: str = ""
    language: str = ""


@dataclass(slots=True)
class ExampleCounters:
    """What became of the items.

    Attributes:
        read: items read.
        written: examples made of them.
        dropped: items left out, by reason.
        changed: items kept with something cut, merged or replaced, by reason.
    """

    read: int = 0
    written: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)


def to_messages(
    item: Item, system_prompt: str, counters: ExampleCounters, tool_messages: ToolMessages = "include"
) -> Messages | None:
    """The example that `item` gives, or None if it holds nothing for an assistant to learn.

    Args:
        item: a conversation.
        system_prompt: the operator's instructions, the same for all items.
        counters: is counted up.
        tool_messages: whether what tools gave back stays as context.
    """
    counters.read += 1
    changes: set[str] = set()
    turns = _until_handover(item, changes)
    messages: Messages = []
    for turn in turns:
        if turn.role == "system" or (turn.role == "tool" and tool_messages == "skip"):
            changes.add("system message of the log replaced" if turn.role == "system" else "tool messages skipped")
            continue
        _append(messages, {"role": turn.role, "content": _text(turn)}, changes)
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
        changes.add("turns after the last assistant turn cut")
    if not any(m["role"] == "user" for m in messages):
        counters.dropped["no assistant turn after a user turn"] += 1
        return None
    system = system_message(system_prompt, item.facts)
    counters.written += 1
    counters.changed.update(changes)
    return [{"role": "system", "content": system}, *messages] if system else messages


def tool_call_text(name: str, arguments: dict[str, Any]) -> str:
    """A tool call as the model writes it (the form of Hermes and Qwen)."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>{call}</tool_call>"


def _until_handover(item: Item, changes: set[str]) -> Sequence[Turn]:
    """The turns, cut at the handover, whose turn ends with the tool call."""
    at = item.human_intervention_idx
    if at is None:
        return item.turns
    changes.add("handover became a tool call")
    reason = {"reason": item.human_intervention_reason or "unspecified"}
    call = ToolCall(HANDOVER_TOOL, json.dumps(reason, ensure_ascii=False))
    before, turn = list(item.turns[:at]), item.turns[at] if at < len(item.turns) else None
    if turn is None or turn.role == "tool":
        return [*before, Turn("assistant", "", (call,))]
    if turn.role == "user":
        return [*before, turn, Turn("assistant", "", (call,))]
    other = tuple(c for c in turn.tool_calls if c.name != HANDOVER_TOOL)
    return [*before, Turn("assistant", turn.content, (*other, call))]


def _text(turn: Turn) -> str:
    """Text and tool calls as one text. Arguments that are no JSON object are kept under `text`."""
    parts = [turn.content.strip()] if turn.content.strip() else []
    for call in turn.tool_calls:
        try:
            arguments = json.loads(call.arguments_json or "{}")
        except ValueError:
            arguments = {"text": call.arguments_json}
        parts.append(tool_call_text(call.name, arguments))
    return "\n".join(parts)


def _append(messages: Messages, message: Message, changes: set[str]) -> None:
    """Add a turn; an empty one is left out, and a second one by the same speaker joins the first."""
    if not message["content"]:
        changes.add("empty turns left out")
    elif messages and messages[-1]["role"] == message["role"]:
        messages[-1] = {"role": message["role"], "content": f"{messages[-1]['content']}\n{message['content']}"}
        changes.add("turns of one speaker joined")
    else:
        messages.append(message)
