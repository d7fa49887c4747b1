"""The phrase banks of the base corpus, each joined with more ways of saying the same (`phrases/ways_*.yaml`).

Where `further` is asked for, `phrases/further_*.yaml` are joined too. They are apart because the first stage of
training, which takes a GPU, was made without them, and its corpus must come out as it was.

It knows the files and nothing of what is made of them.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from samples.grammar import bank

PHRASES = Path(__file__).with_name("phrases")
_WAYS = {
    "topics_en_shop": ("ways_en_a", "ways_en_b"),
    "topics_zh": ("ways_zh",),
    "acts_en": ("ways_en_acts",),
    "acts_zh": ("ways_zh_acts",),
}
_FURTHER = {
    "topics_en_shop": ("further_en_topics",),
    "topics_zh": ("further_zh_topics",),
    "acts_en": ("further_en_talk", "further_en_small", "further_en_care"),
    "acts_zh": ("further_zh_acts",),
}


def world() -> Mapping[str, Any]:
    """Names, companies, items and the like."""
    return bank(PHRASES / "world.yaml")


@cache
def topics(name: str, further: bool = False) -> list[dict[str, Any]]:
    """The topics of `topics_en_shop`, `topics_en_other` or `topics_zh`: name, ways to ask, facts and replies."""
    loaded: Any = bank(PHRASES / f"{name}.yaml")
    more = _ways(name, further)
    return [{**topic, "ask": [*topic["ask"], *more.get(topic["name"], ())]} for topic in loaded]


@cache
def acts(language: str, further: bool = False) -> dict[str, Any]:
    """The acts of `en` or `zh`, with frames, openings and the rest of that language's speech."""
    return _joined(bank(PHRASES / f"acts_{language}.yaml"), _ways(f"acts_{language}", further))


@cache
def memory(language: str, further: bool = False) -> dict[str, Any]:
    """What is known of a customer in `en` or `zh`, what customers ask about it, and the answers."""
    return _joined(bank(PHRASES / "memory.yaml")[language], _ways(f"acts_{language}", further))


@cache
def _ways(name: str, further: bool) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for file in (*_WAYS.get(name, ()), *(_FURTHER.get(name, ()) if further else ())):
        for key, ways in bank(PHRASES / f"{file}.yaml").items():
            joined[key] = [*joined.get(key, ()), *ways]
    return joined


def _joined(own: Mapping[str, Any], more: Mapping[str, list[str]]) -> dict[str, Any]:
    joined = dict(own)
    for name in own.keys() & more.keys():
        said = own[name]
        if isinstance(said, dict):
            joined[name] = {**said, "user": [*said["user"], *more[name]]}
        else:
            joined[name] = [*said, *more[name]]
    return joined
