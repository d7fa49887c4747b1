"""The phrase banks of the base corpus, each joined with more ways of saying the same (`phrases/ways_*.yaml`).

`further` says how many of the later sets are joined too: none, `phrases/further_*.yaml`, or `phrases/contrast_*.yaml`
as well, many of whose lines sound like another matter than theirs. They are apart because the first stages of training
were made without them, and a stage's corpus must come out as it was.

It knows the files and nothing of what is made of them.
"""

from collections.abc import Mapping
from functools import cache
from itertools import chain
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
_FURTHER = (
    {
        "topics_en_shop": ("further_en_topics",),
        "topics_zh": ("further_zh_topics",),
        "acts_en": ("further_en_talk", "further_en_small", "further_en_care"),
        "acts_zh": ("further_zh_acts",),
    },
    {
        "topics_en_shop": ("contrast_en_topics_a", "contrast_en_topics_b"),
        "topics_zh": ("contrast_zh_topics",),
        "acts_en": ("contrast_en_talk", "contrast_en_care"),
        "acts_zh": ("contrast_zh_acts",),
    },
    {
        "topics_en_shop": ("broad_en_topics_a", "broad_en_topics_b", "people_en_topics_a", "people_en_topics_b"),
        "topics_zh": ("broad_zh_topics", "people_zh_topics"),
        "acts_en": ("broad_en_talk", "broad_en_care", "people_en_acts"),
        "acts_zh": ("broad_zh_acts", "people_zh_acts"),
    },
)
ALL = len(_FURTHER)
"""All later sets."""


def world() -> Mapping[str, Any]:
    """Names, companies, items and the like."""
    return bank(PHRASES / "world.yaml")


@cache
def topics(name: str, further: int = 0) -> list[dict[str, Any]]:
    """The topics of `topics_en_shop`, `topics_en_other` or `topics_zh`: name, ways to ask, facts and replies."""
    loaded: Any = bank(PHRASES / f"{name}.yaml")
    more = _ways(name, further)
    return [{**topic, "ask": [*topic["ask"], *more.get(topic["name"], ())]} for topic in loaded]


@cache
def acts(language: str, further: int = 0) -> dict[str, Any]:
    """The acts of `en` or `zh`, with frames, openings and the rest of that language's speech."""
    return _joined(bank(PHRASES / f"acts_{language}.yaml"), _ways(f"acts_{language}", further))


@cache
def memory(language: str, further: int = 0) -> dict[str, Any]:
    """What is known of a customer in `en` or `zh`, what customers ask about it, and the answers."""
    return _joined(bank(PHRASES / "memory.yaml")[language], _ways(f"acts_{language}", further))


@cache
def _ways(name: str, further: int) -> dict[str, list[str]]:
    joined: dict[str, list[str]] = {}
    for file in chain.from_iterable(files.get(name, ()) for files in (_WAYS, *_FURTHER[:further])):
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
