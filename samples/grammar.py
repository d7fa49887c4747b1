"""Sentences from a small grammar, so that a page of phrases yields thousands of different lines.

A phrase holds choices in square brackets, which may nest and be empty, and slots in angle brackets:

    "[hi|hello], [can|could] I [send back|return] <item>[| please]?"

The module knows nothing of shops, roles or languages.
"""

import random
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import yaml

Slots: TypeAlias = Mapping[str, str | Sequence[str]]
"""What a slot may stand for: one text, or several of which one is drawn. Both are expanded in turn."""

_Node: TypeAlias = "str | _Slot | tuple[tuple[_Node, ...], ...]"


class _Slot(str):
    """The name of a slot, told apart from plain text."""

    __slots__ = ()


class PhraseError(ValueError):
    """A phrase that cannot be read or names a slot that nobody fills."""


@cache
def _parse(phrase: str) -> tuple[_Node, ...]:
    nodes, rest = _sequence(phrase, 0, stop="")
    if rest != len(phrase):
        raise PhraseError(f"unbalanced ']' at {rest} in {phrase!r}")
    return nodes


def _sequence(phrase: str, at: int, stop: str) -> tuple[tuple[_Node, ...], int]:
    nodes: list[_Node] = []
    text = ""
    while at < len(phrase) and phrase[at] not in stop:
        char = phrase[at]
        if char == "[":
            nodes.append(text)
            text = ""
            choice, at = _choice(phrase, at + 1)
            nodes.append(choice)
        elif char == "<" and (end := phrase.find(">", at)) > 0:
            nodes.extend([text, _Slot(phrase[at + 1 : end])])
            text = ""
            at = end + 1
        elif char == "]":
            break
        else:
            text += char
            at += 1
    nodes.append(text)
    return tuple(node for node in nodes if node != ""), at


def _choice(phrase: str, at: int) -> tuple[tuple[tuple[_Node, ...], ...], int]:
    options: list[tuple[_Node, ...]] = []
    while True:
        nodes, at = _sequence(phrase, at, stop="|]")
        options.append(nodes)
        if at >= len(phrase):
            raise PhraseError(f"a '[' is never closed in {phrase!r}")
        if phrase[at] == "]":
            return tuple(options), at + 1
        at += 1


def expand(phrase: str, rng: random.Random, slots: Slots | None = None) -> str:
    """One sentence of `phrase`, choices drawn from `rng`.

    Raises:
        PhraseError: brackets do not match, or a slot is missing from `slots`.
    """
    return _render(_parse(phrase), rng, {} if slots is None else slots, phrase)


def _render(nodes: tuple[_Node, ...], rng: random.Random, slots: Slots, phrase: str) -> str:
    parts: list[str] = []
    for node in nodes:
        if isinstance(node, _Slot):
            if node not in slots:
                raise PhraseError(f"slot <{node}> has no value in {phrase!r}")
            value = slots[node]
            parts.append(expand(value if isinstance(value, str) else rng.choice(value), rng, slots))
        elif isinstance(node, str):
            parts.append(node)
        else:
            parts.append(_render(rng.choice(node), rng, slots, phrase))
    return "".join(parts)


@cache
def bank(path: Path) -> dict[str, Any]:
    """The phrases of a YAML file, read once."""
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded
