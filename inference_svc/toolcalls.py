"""Finds the tool calls in a model's text while the text still streams.

Models of the Hermes and Qwen families write a call as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, after
any text that the customer is to read. The text leaves at once; what may be the beginning of a call is kept until it is
clear. A call that is not valid stays text, tags and all, and is counted. This module knows no contract and no model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

OPEN = "<tool_call>"
CLOSE = "</tool_call>"
TRANSFER_TO_HUMAN = "transfer_to_human"
"""Name of the tool whose call hands the conversation to a person."""
MAX_CALL_CHARACTERS = 65_536
"""A longer call is taken for text, so that a model that never closes one costs no more than this."""


@dataclass(frozen=True, slots=True)
class ParsedCall:
    """A call as the model wrote it.

    Attributes:
        name: name of the tool.
        arguments: JSON object as text.
        reason: for `transfer_to_human`, its `reason`; empty otherwise.
    """

    name: str
    arguments: str
    reason: str = ""

    @property
    def is_handoff(self) -> bool:
        """Whether a person should take over."""
        return self.name == TRANSFER_TO_HUMAN


class ToolCallParser:
    """Splits streamed text into what the customer reads and the calls between it.

    Attributes:
        malformed: calls that were left as text because they were not valid.
    """

    def __init__(self) -> None:
        self.malformed = 0
        self._held = ""
        self._inside = False
        self._after_call = False

    def feed(self, text: str) -> list[str | ParsedCall]:
        """What became clear with this text, in order; adjacent text is one item."""
        if not (self._held or self._inside or self._after_call) and "<" not in text and not text[-1:].isspace():
            return [text] if text else []
        self._held += text
        return self._split(final=False)

    def finish(self) -> list[str | ParsedCall]:
        """What was kept back, now that nothing follows. A call without its closing tag counts if it is complete."""
        return self._split(final=True)

    def _split(self, final: bool) -> list[str | ParsedCall]:
        found: list[str | ParsedCall] = []
        while True:
            more = self._inside_call(found, final) if self._inside else self._outside_call(found, final)
            if not more:
                return found

    def _outside_call(self, found: list[str | ParsedCall], final: bool) -> bool:
        if self._after_call:
            # The white space that models put after a call is part of the notation.
            self._held = self._held.lstrip()
            self._after_call = not self._held
        start = self._held.find(OPEN)
        if start >= 0:
            _append(found, self._held[:start].rstrip())
            self._held, self._inside = self._held[start:], True
            return True
        keep = 0 if final else _undecided(self._held)
        cut = len(self._held) - keep
        _append(found, self._held[:cut])
        self._held = self._held[cut:]
        return False

    def _inside_call(self, found: list[str | ParsedCall], final: bool) -> bool:
        end = self._held.find(CLOSE, len(OPEN))
        if end < 0 and not final and len(self._held) <= MAX_CALL_CHARACTERS:
            return False
        body = self._held[len(OPEN) : end] if end >= 0 else self._held[len(OPEN) :]
        after = end + len(CLOSE) if end >= 0 else len(self._held)
        call = parse_call(body)
        if call is not None:
            found.append(call)
            self._held, self._after_call = self._held[after:], True
        else:
            self.malformed += 1
            _append(found, self._held[: len(OPEN)])
            self._held = self._held[len(OPEN) :]
        self._inside = False
        return True


def parse_call(body: str) -> ParsedCall | None:
    """The call that this JSON says, or None if it is not one: an object with a `name` and an object of `arguments`."""
    try:
        value = json.loads(body)
    except (json.JSONDecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(name := value.get("name"), str) or not name:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (json.JSONDecodeError, RecursionError):
            return None
    if not isinstance(arguments, dict):
        return None
    reason = arguments.get("reason", "") if name == TRANSFER_TO_HUMAN else ""
    return ParsedCall(
        name, json.dumps(arguments, ensure_ascii=False), reason if isinstance(reason, str) else json.dumps(reason)
    )


def _undecided(text: str) -> int:
    """How many characters at the end may still turn out to belong to a call: a part of its tag, and space before it."""
    tail = next((n for n in range(min(len(OPEN) - 1, len(text)), 0, -1) if OPEN.startswith(text[-n:])), 0)
    before = text[: len(text) - tail]
    return tail + len(before) - len(before.rstrip())


def _append(found: list[str | ParsedCall], text: str) -> None:
    if not text:
        return
    if found and isinstance(last := found[-1], str):
        found[-1] = last + text
    else:
        found.append(text)
