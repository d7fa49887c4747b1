"""What was known about the customer outside the conversation, as short lines for the system prompt.

A source may give the lines itself (`context.facts`); otherwise they are made from those parts of `context` that an
agent sees on the screen (profile, order, session). What only the customer or the experiment knew (goals, tasks,
instructions to crowd workers) is never taken, because a model that is trained with it learns to rely on what it will
not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dataset_svc.text import clean

KNOWN_TO_AGENT = ("profile", "customer", "user", "account", "session", "order", "product", "channel", "city", "locale")
"""Keys of `context` that become facts."""

MAX_FACTS = 100
MAX_CHARACTERS = 2_000
"""Bounds on the facts that a source gives; they are joined to every prompt, so more can only be a mistake."""

MAX_DERIVED = 200
"""Fields of profile, order and session longer than this are not taken for facts."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One line about the customer.

    Attributes:
        text: the line.
        since: index of the source's message from which on it was known; 0 is from the beginning.
    """

    text: str
    since: int = 0


def from_context(context: Mapping[str, Any]) -> list[Fact]:
    """The facts that a conversation's context gives.

    `context.facts` is a list of texts, or of `[index, text]` for what came up later. An empty list means that
    nothing was known, and nothing is derived then.

    Raises:
        ValueError: `context.facts` is something else.
    """
    given = context.get("facts")
    if given is None:
        return [Fact(line) for line in _derived(context)][:MAX_FACTS]
    if isinstance(given, list) and len(given) > MAX_FACTS:
        raise ValueError(f"context.facts has {len(given)} lines; at most {MAX_FACTS} can be taken")
    if not isinstance(given, list):
        raise ValueError("context.facts must be a list of texts, or of [index, text]")
    return [fact for fact in map(_given, given) if fact.text]


def _given(value: Any) -> Fact:
    since, text = value if isinstance(value, list) and len(value) == 2 else (0, value)
    if not isinstance(text, str) or type(since) is not int or since < 0:
        raise ValueError(f"context.facts must be a list of texts, or of [index, text], not {value!r:.60}")
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"a line of context.facts has {len(text):,} characters; at most {MAX_CHARACTERS:,} can be taken"
        )
    return Fact(_one_line(text), since)


def _derived(context: Mapping[str, Any]) -> Iterator[str]:
    for key in KNOWN_TO_AGENT:
        value = context.get(key)
        fields = value.items() if isinstance(value, dict) else [("", value)]
        for name, part in fields:
            text = _scalar(part)
            if text and len(text) <= MAX_DERIVED:
                yield _one_line(f"{_words(key, name)}: {text}.")


def _words(key: str, name: str) -> str:
    words = name.replace("_", " ").strip()
    return f"{key} {words.removeprefix(f'{key} ')}".strip().capitalize()


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str | int | float):
        return str(value).strip()
    if isinstance(value, list):
        return ", ".join(filter(None, (_scalar(part) for part in value if not isinstance(part, list))))
    return ""


def _one_line(text: str) -> str:
    return " ".join(clean(text).split())
