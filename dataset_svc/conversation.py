"""A conversation as the mesh sees it, whatever file it came from.

Roles inside Chatmill are `system`, `user`, `assistant` and `tool`. Customer service logs say customer, agent and
action; `role_of` maps those. What the agent did in a tool (`action`) stays a message of role `tool`, with one
exception: a call of `transfer_to_human` is something that the model must learn to do, so it becomes a tool call of
the assistant. This module reads no file and drops nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dataset_svc import strict_json
from dataset_svc.text import letters

Role = Literal["system", "user", "assistant", "tool"]

TRANSFER_TO_HUMAN = "transfer_to_human"
"""Name of the tool by which an assistant hands the conversation to a person, everywhere in the mesh."""

PERSON = "person"
"""`role_of` answers this for a message by a person who took over from the assistant."""

_ROLES: dict[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "customer": "user",
    "client": "user",
    "visitor": "user",
    "human": "user",
    "assistant": "assistant",
    "agent": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "function": "tool",
    "action": "tool",
    "observation": "tool",
    "human_agent": PERSON,
    "live_agent": PERSON,
    "supervisor": PERSON,
}

KNOWN_ROLES = tuple(_ROLES)
"""Every spelling of a role that a file may use."""

_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


def role_of(spelling: str) -> str | None:
    """Role of ours (or `PERSON`) for a file's spelling of it, or None if it is unknown."""
    return _ROLES.get(spelling.strip().lower())


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool by the assistant.

    Attributes:
        name: name of the tool.
        arguments: what it is called with, as a decoded JSON object.
        id: name by which a result refers to it, if the source gives one.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    id: str = ""


def split_tool_calls(content: str) -> tuple[str, tuple[ToolCall, ...]]:
    """Text and tool calls of an assistant message that carries its calls in the text (Qwen and Hermes style).

    What looks like a call and isn't one (no JSON, no name) stays text.
    """
    if "<tool_call>" not in content:
        return content, ()
    calls: list[ToolCall] = []

    def take(found: re.Match[str]) -> str:
        try:
            call = strict_json.loads(found.group(1))
        except ValueError:
            return found.group(0)
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return found.group(0)
        calls.append(ToolCall(name, arguments))
        return ""

    text = _TOOL_CALL.sub(take, content)
    return (text.strip(), tuple(calls)) if calls else (content, ())


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes:
        role: who speaks.
        content: the text.
        tool_calls: the calls that the assistant makes after its text.
        name: name of the tool, on messages of role `tool`.
        by_person: the message was written by a person who had taken over from the assistant.
        origin: zero-based indexes of the source's messages that this one was made of; several after a burst was merged.
        call_id: on a message of role `tool`, id of the call that it answers, if the source gives one.
        data: what the source gave for a tool message besides text (arguments, results), as decoded JSON.
    """

    role: Role
    content: str
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    by_person: bool = False
    origin: tuple[int, ...] = ()
    call_id: str = ""
    data: Any = None

    @property
    def handover(self) -> ToolCall | None:
        """The call of `transfer_to_human` in this message, if it makes one."""
        return next((call for call in self.tool_calls if call.name == TRANSFER_TO_HUMAN), None)

    @property
    def empty(self) -> bool:
        """True if it neither says nor calls anything."""
        return not self.tool_calls and not self.content.strip()

    def canonical(self) -> str:
        """Who said and called what, as one text; equal for messages that mean the same to a model."""
        calls = [json.dumps([c.name, c.arguments], ensure_ascii=False, sort_keys=True) for c in self.tool_calls]
        return "\x1f".join([self.role, self.name or "", self.content.strip(), *calls])


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation with all that its source says about it.

    Attributes:
        id: unique in its dataset, fit for the last segment of a resource name.
        messages: in order of time.
        source_id: the id that the source gave, or an empty text.
        place: file and line it came from, for messages to people (`shop.jsonl.gz:12`).
        source_length: how many messages the source has; `messages` may hold fewer.
        context: what is known outside the text (customer, order, session); the source's own keys.
        annotations: labels that the source gives; its own keys. Indexes in it count the source's messages.
    """

    id: str
    messages: tuple[Message, ...]
    source_id: str = ""
    place: str = ""
    source_length: int = 0
    context: Mapping[str, Any] = field(default_factory=dict)
    annotations: Mapping[str, Any] = field(default_factory=dict)

    def index_of(self, source_index: int) -> int:
        """Index in `messages` of the source's message number `source_index`, or of the first one kept after it.

        The number of messages if neither it nor any later one was kept.
        """
        for index, message in enumerate(self.messages):
            if message.origin and message.origin[-1] >= source_index:
                return index
        return len(self.messages)

    def digest(self) -> str:
        """Digest (hex, 32 digits) of who said what; equal for exact duplicates."""
        return hashlib.sha256("\x1e".join(m.canonical() for m in self.messages).encode()).hexdigest()[:32]

    def near_key(self) -> str:
        """Digest that ignores numbers, case, spacing and punctuation; equal for near-duplicates that differ in these
        only.

        A conversation with no letter at all falls back on the exact digest, so that such ones are not all taken for
        one.
        """
        said = [(m.role, letters(m.content)) for m in self.messages if m.role in ("user", "assistant")]
        if not any(text for _, text in said):
            return self.digest()
        return hashlib.sha256("\x1e".join(f"{role}\x1f{text}" for role, text in said).encode()).hexdigest()[:32]

    @property
    def characters(self) -> int:
        """Unicode code points in all messages together."""
        return sum(len(m.content) for m in self.messages)
