"""How texts are made comparable: normalisation that remembers where each character came from, words, sentences,
scripts.

Matching happens on the normalised text; evidence is quoted from the original. This module knows no check.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import regex

_QUOTES = {ord(c): "'" for c in "‘’‚‛′`´"} | {ord(c): '"' for c in "“”„‟«»「」『』″"}
_DASHES = {ord(c): "-" for c in "‐‑‒–—―−"}
_PLAIN = _QUOTES | _DASHES
_INVISIBLE = regex.compile(r"[\p{Cf}\ufe00-\ufe0f]+")
_CLUSTER = regex.compile(r"\X", regex.DOTALL)
_THOUSANDS = regex.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}]|(?:(?![\p{Han}\p{Hiragana}\p{Katakana}])[\p{L}\p{M}\p{N}'])+")
_SENTENCE_END = regex.compile(r"[!?。！？]+|\.+(?=\s|$)|\n+")
_CLAUSE_END = regex.compile(r"[.!?;。！？；\n]")

SCRIPTS = {
    name: regex.compile(rf"\p{{{name}}}")
    for name in (
        "Han",
        "Latin",
        "Hiragana",
        "Katakana",
        "Hangul",
        "Cyrillic",
        "Arabic",
        "Greek",
        "Hebrew",
        "Thai",
        "Devanagari",
    )
}
_LETTER = regex.compile(r"\p{L}")

SCRIPTS_OF_LANGUAGE: dict[str, tuple[str, ...]] = {
    "zh": ("Han",),
    "ja": ("Hiragana", "Katakana", "Han"),
    "ko": ("Hangul",),
    "ru": ("Cyrillic",),
    "uk": ("Cyrillic",),
    "bg": ("Cyrillic",),
    "ar": ("Arabic",),
    "fa": ("Arabic",),
    "el": ("Greek",),
    "he": ("Hebrew",),
    "th": ("Thai",),
    "hi": ("Devanagari",),
}
"""Scripts by ISO 639-1 code; a language that is not listed is written in Latin letters."""


@dataclass(frozen=True, slots=True)
class Normalised:
    """A normalised text with the way back.

    Attributes:
        text: the normalised text.
        original: the text as it came.
        starts: for each character of `text`, where in `original` it begins; one more entry than characters, the
            last is the end.
    """

    text: str
    original: str
    starts: tuple[int, ...]

    def quote(self, start: int, end: int) -> str:
        """The original passage behind `text[start:end]`."""
        if start >= end:
            return ""
        return self.original[self.starts[start] : self.starts[end]].strip()


@lru_cache(maxsize=4096)
def normalise(text: str, *, fold: bool = True) -> Normalised:
    """NFKC, case folded (if `fold`), quotes and dashes plain, invisible characters and thousands separators out,
    spaces single.

    "1,000" becomes "1000"; "１，０００" too. Idempotent on its own output.
    """
    characters: list[str] = []
    starts: list[int] = []
    for piece, start in _pieces(text, fold):
        for character in piece:
            if character.isspace():
                if not characters or characters[-1] == " ":
                    continue
                character = " "
            characters.append(character)
            starts.append(start)
    if characters and characters[-1] == " ":
        characters.pop()
        starts.pop()
    joined = "".join(characters)
    drop = {match.start() for match in _THOUSANDS.finditer(joined)}
    if drop:
        joined = "".join(c for i, c in enumerate(joined) if i not in drop)
        starts = [s for i, s in enumerate(starts) if i not in drop]
    return Normalised(joined, text, (*starts, len(text)))


def _pieces(text: str, fold: bool) -> Iterator[tuple[str, int]]:
    """Each grapheme cluster in its normal form, with its place in `text`."""
    if text.isascii():
        plain = text.translate(_PLAIN)
        for start, character in enumerate(plain.lower() if fold else plain):
            yield character, start
        return
    for match in _CLUSTER.finditer(text):
        piece = match.group()
        # casefold may leave a form that NFKC changes again, and NFKC may lay bare a quote or a capital, hence the
        # rounds
        for _ in range(4):
            before = piece
            piece = unicodedata.normalize("NFKC", _INVISIBLE.sub("", piece)).translate(_PLAIN)
            if fold:
                piece = unicodedata.normalize("NFKC", piece.casefold())
            if piece == before:
                break
        yield piece, match.start()


def plain(text: str) -> str:
    """The normalised text alone."""
    return normalise(text).text


def words(text: str) -> list[str]:
    """Words in order; each Chinese or Japanese character counts as a word, since nothing separates them."""
    return [str(word) for word in _WORD.findall(text)]


def sentences(text: str) -> list[str]:
    """Sentences without their final marks, empty ones left out."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def clause_before(text: str, position: int) -> str:
    """What stands before `position` in the same clause."""
    head = text[:position]
    ends = [match.end() for match in _CLAUSE_END.finditer(head)]
    return head[ends[-1] :] if ends else head


def clause_after(text: str, position: int) -> str:
    """What stands after `position` in the same clause."""
    tail = text[position:]
    end = _CLAUSE_END.search(tail)
    return tail[: end.start()] if end else tail


def letters(text: str) -> int:
    """How many letters of any script."""
    return len(_LETTER.findall(text))


def script_share(text: str, language: str) -> float:
    """The share of letters that belong to the scripts of `language`, 0 to 1; 0 if there are no letters.

    A Han character stands for about as much as three Latin letters, so it weighs three; else one product name in a
    Chinese sentence would tip the scale.
    """
    weights = {name: len(pattern.findall(text)) * (3 if name == "Han" else 1) for name, pattern in SCRIPTS.items()}
    total = sum(weights.values())
    wanted = SCRIPTS_OF_LANGUAGE.get(language.split("-")[0].lower(), ("Latin",))
    return sum(weights[name] for name in wanted) / total if total else 0.0


def ngrams(tokens: list[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
