"""The language of a text, told by its script; Latin script is called English only when English function words say so.

A hint for statistics and filters, not a language identifier: a German log is `und` (undetermined, BCP 47) here, and a
client's class may know better by overriding `ConversationDataset.language`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

UNDETERMINED = "und"

_SCRIPTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff]")),
    ("ru", re.compile(r"[\u0400-\u04ff]")),
    ("ar", re.compile(r"[\u0600-\u06ff]")),
    ("he", re.compile(r"[\u0590-\u05ff]")),
    ("el", re.compile(r"[\u0370-\u03ff]")),
    ("th", re.compile(r"[\u0e00-\u0e7f]")),
    ("hi", re.compile(r"[\u0900-\u097f]")),
)
_LATIN_WORD = re.compile(r"[a-zA-Z\u00c0-\u024f']+")
_ENGLISH_WORDS = """
    a an and are at be can do for have hello hi how i i'd i'm in is it it's me my need no of ok on please thank thanks
    that the this to want was what when with would yes you your
"""
_ENGLISH = frozenset(_ENGLISH_WORDS.split())
_ENOUGH = 4000


def detect(texts: Iterable[str]) -> str:
    """BCP 47 code of the language that most of the letters belong to, or `und`.

    Three letters of another script weigh as much as one Latin word, so that a Chinese reply with a product name in
    Latin script stays Chinese. Kana beside Han means Japanese. Only the first 4,000 characters are looked at.
    """
    text = " ".join(texts)[:_ENOUGH]
    counts = {code: len(pattern.findall(text)) for code, pattern in _SCRIPTS} if not text.isascii() else {}
    words = [word.lower() for word in _LATIN_WORD.findall(text)]
    best = max(counts, key=lambda code: counts[code], default=None)
    if best is not None and counts[best] > 0 and counts[best] >= 3 * len(words):
        if best == "zh" and counts["ja"] * 10 >= counts["zh"]:
            return "ja"
        return best
    english = sum(word in _ENGLISH for word in words)
    return "en" if words and english * 8 >= len(words) else UNDETERMINED
