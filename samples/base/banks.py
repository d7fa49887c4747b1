"""The phrase banks of the base corpus, each joined with the many more ways of saying the same.

Files written at the same time begin with the same word: `ways`, `further`, `contrast` (lines that sound like another
matter than theirs), `broad` (more everyday nouns and situations) and `people` (another imagined customer for each
line). This module knows the files and nothing of what is made of them.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from samples.grammar import bank

PHRASES = Path(__file__).with_name("phrases")
_WAYS = {
    "topics_en_shop": (
        "ways_en_a",
        "ways_en_b",
        "further_en_topics",
        "contrast_en_topics_a",
        "contrast_en_topics_b",
        "broad_en_topics_a",
        "broad_en_topics_b",
        "people_en_topics_a",
        "people_en_topics_b",
    ),
    "topics_zh": ("ways_zh", "further_zh_topics", "contrast_zh_topics", "broad_zh_topics", "people_zh_topics"),
    "acts_en": (
        "ways_en_acts",
        "further_en_talk",
        "further_en_small",
        "further_en_care",
        "contrast_en_talk",
        "contrast_en_care",
        "broad_en_talk",
        "broad_en_care",
        "people_en_acts",
    ),
    "acts_zh": ("ways_zh_acts", "further_zh_acts", "contrast_zh_acts", "broad_zh_acts", "people_zh_acts"),
}


def world() -> Mapping[str, Any]:
    """Names, companies, items and the like."""
    return bank(PHRASES / "world.yaml")


@cache
def topics(name: str) -> list[dict[str, Any]]:
    """The topics of `topics_en_shop`, `topics_en_other` or `topics_zh`: name, ways to ask, facts and replies."""
    loaded: Any = bank(PHRASES / f"{name}.yaml")
    more = _ways(name)
    return [{**topic, "ask": [*topic["ask"], *more.get(topic["name"], ())]} for topic in loaded]


@cache
def acts(language: str) -> dict[str, Any]:
    """The acts of `en` or `zh`, with frames, openings and the rest of that language's speech."""
    return _joined(bank(PHRASES / f"acts_{language}.yaml"), _ways(f"acts_{language}"))


@cache
def memory(language: str) -> dict[str, Any]:
    """What is known of a customer in `en` or `zh`, what customers ask about it, and the answers."""
    return _joined(bank(PHRASES / "memory.yaml")[language], _ways(f"acts_{language}"))


@cache
def _ways(name: str) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for file in _WAYS.get(name, ()):
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
