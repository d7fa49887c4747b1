"""All words of the page, in both languages, from one table; this module knows no component."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import resources

import yaml

LANGUAGES = {"en": "English", "zh": "中文"}
FALLBACK = "en"


@cache
def table() -> Mapping[str, Mapping[str, str]]:
    """Key to language to text."""
    source = resources.files(__package__).joinpath("texts.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, str]] = yaml.safe_load(source)
    return found


def text(language: str, key: str, **values: object) -> str:
    """The text under `key`; English where the language is unknown.

    Raises:
        KeyError: there is no such text, a defect of the page.
    """
    entry = table()[key]
    return entry.get(language, entry[FALLBACK]).format(**values) if values else entry.get(language, entry[FALLBACK])


def known(key: str) -> bool:
    """Whether there is a text of that name."""
    return key in table()


def error_name(language: str, name: str, meaning: str) -> str:
    """What a class of error is called; its meaning where the table doesn't know it, as with a newer service."""
    return text(language, f"error.{name}") if f"error.{name}" in table() else meaning or name


def preferred(header: str) -> str:
    """The first of our languages in an Accept-Language header; English without any."""
    for part in header.split(","):
        code = part.split(";")[0].strip().lower().partition("-")[0]
        if code in LANGUAGES:
            return code
    return FALLBACK
