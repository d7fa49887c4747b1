"""From what a client sent to the messages that a model is given: system prompt, facts, examples and prompt templates.

Substitution is done once over the template's own text, so what a customer types is never read as a placeholder. This
module knows no tokenizer; control tokens are dealt with in `prompts`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from chatmill.prompts import system_message
from inference_svc.entries import ModelEntry
from inference_svc.generation import Message, Role

_PLACEHOLDER = re.compile(r"\{(context|history|question)\}")
_SPEAKERS = {Role.USER: "Customer", Role.ASSISTANT: "Agent", Role.TOOL: "Tool", Role.SYSTEM: "System"}


def compose(entry: ModelEntry, messages: Sequence[Message], facts: Sequence[str] = ()) -> tuple[Message, ...]:
    """The conversation as `entry` is to see it.

    The client's system message stands in for the entry's own; facts follow it after a line break, in one line, as in
    training. A prompt model's examples come next, and its template renders the newest user message, with `{context}`
    (the facts), `{history}` (the turns before, a line each) and `{question}` (the message).
    """
    system = next((m.content for m in messages if m.role is Role.SYSTEM), entry.system_prompt)
    turns = [m for m in messages if m.role is not Role.SYSTEM]
    template = entry.prompt_template
    system = system_message(system, () if "{context}" in template else facts)
    composed = [Message(Role.SYSTEM, system)] if system else []
    for user, assistant in entry.examples:
        composed += [Message(Role.USER, user), Message(Role.ASSISTANT, assistant)]
    if not template:
        return (*composed, *turns)
    return (*composed, *_rendered(template, turns, facts))


def system_prompt(messages: Sequence[Message]) -> str:
    """The operator's instructions in a composed conversation, or an empty text."""
    return messages[0].content if messages and messages[0].role is Role.SYSTEM else ""


def newest(messages: Sequence[Message]) -> list[int]:
    """Indexes of what came in since the agent's last turn: user and tool messages."""
    found: list[int] = []
    for index in range(len(messages) - 1, -1, -1):
        if messages[index].role is Role.ASSISTANT:
            break
        if messages[index].role is not Role.SYSTEM:
            found.append(index)
    return found[::-1]


def _rendered(template: str, turns: Sequence[Message], facts: Sequence[str]) -> list[Message]:
    at = next((i for i in range(len(turns) - 1, -1, -1) if turns[i].role is Role.USER), None)
    if at is None:
        return list(turns)
    values = {
        "context": "\n".join(facts),
        "history": "\n".join(f"{_SPEAKERS[m.role]}: {m.content}" for m in turns[:at]),
        "question": turns[at].content,
    }
    rendered = Message(Role.USER, _PLACEHOLDER.sub(lambda match: values[match[1]], template))
    # With the history inside the rendered turn, the turns themselves would say everything twice.
    before = [] if "{history}" in template else turns[:at]
    return [*before, rendered, *turns[at + 1 :]]
