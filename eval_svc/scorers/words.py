"""Checks for words: contains_any, contains_all, equals, starts_with.

Both sides are normalised (`eval_svc.text.normalise`). A number never matches inside a longer number: "30" is not in
"1300".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.text import Normalised, clause_after, clause_before, normalise, plain, words

Texts = str | tuple[str, ...]


def listed(value: Texts) -> tuple[str, ...]:
    """One text or several, as several; refuses none and blank ones, which would match anything."""
    several = (value,) if isinstance(value, str) else tuple(value)
    if not several or not all(plain(v) for v in several):
        raise ValueError("value must hold at least one text, and none that is blank")
    return several


def occurrences(text: Normalised, needle: str, *, whole_words: bool = False) -> Iterator[tuple[int, int]]:
    """Where `needle` stands in the normalised text, overlapping ones included."""
    wanted = plain(needle)
    start = text.text.find(wanted)
    while start >= 0:
        end = start + len(wanted)
        before, after = text.text[start - 1 : start], text.text[end : end + 1]
        cuts_number = (wanted[0].isdigit() and _continues_number(text.text, start - 1, -1)) or (
            wanted[-1].isdigit() and _continues_number(text.text, end, 1)
        )
        cuts_word = whole_words and (
            (before.isalnum() and wanted[0].isalnum() and wanted[0].isascii() and before.isascii())
            or (after.isalnum() and wanted[-1].isalnum() and wanted[-1].isascii() and after.isascii())
        )
        if not cuts_number and not cuts_word:
            yield start, end
        start = text.text.find(wanted, start + 1)


def _continues_number(text: str, position: int, step: int) -> bool:
    """True if the character at `position` goes on with a number, a decimal point between digits included."""
    if not 0 <= position < len(text):
        return False
    if text[position].isdigit():
        return True
    beyond = position + step
    return text[position] == "." and 0 <= beyond < len(text) and text[beyond].isdigit()


def negated(text: str, start: int, end: int, unless: tuple[str, ...], window: int, window_after: int) -> bool:
    """True if one of `unless` stands within so many words before (or after) the passage, in the same clause."""
    before = words(clause_before(text, start))[-window:] if window else []
    after = words(clause_after(text, end))[:window_after] if window_after else []
    return any(_holds(near, token) for token in map(plain, unless) for near in (before, after) if near)


def _holds(near: list[str], token: str) -> bool:
    parts = words(token)
    if token.startswith(("n'", "'")):
        return any(word.endswith(token) for word in near)
    return any(near[i : i + len(parts)] == parts for i in range(len(near) - len(parts) + 1))


@dataclass(frozen=True)
class _Contains(Check):
    """Attributes:
    value: the texts to look for.
    unless: words that make an occurrence count for nothing, such as `not`, `cannot`, `n't`, `不`.
    window: how many words before the occurrence may hold one of `unless`.
    window_after: the same after it.
    whole_words: "art" is then not found in "start".
    """

    value: Texts
    unless: tuple[str, ...] = ()
    window: int = 5
    window_after: int = 0
    whole_words: bool = False

    def __post_init__(self) -> None:
        listed(self.value)
        if self.window < 0 or self.window_after < 0:
            raise ValueError("window and window_after must be 0 or more")

    def _first(self, view: View, needle: str) -> str | None:
        """The evidence for `needle`, or None."""
        text = normalise(view.text)
        for start, end in occurrences(text, needle, whole_words=self.whole_words):
            if not (self.unless and negated(text.text, start, end, self.unless, self.window, self.window_after)):
                return text.quote(start, end)
        return None


@SCORERS.register("contains_any")
@dataclass(frozen=True)
class ContainsAny(_Contains):
    """Passes if at least one of the texts occurs."""

    def score(self, view: View) -> Finding:
        """Evidence is the first text found."""
        for needle in listed(self.value):
            evidence = self._first(view, needle)
            if evidence is not None:
                return Finding("pass", 1.0, evidence)
        return Finding("fail", 0.0, note="none of: " + ", ".join(listed(self.value)))


@SCORERS.register("contains_all")
@dataclass(frozen=True)
class ContainsAll(_Contains):
    """Passes if every one of the texts occurs; the score is the share that does."""

    def score(self, view: View) -> Finding:
        """Evidence is the first text found; the note lists what is missing."""
        wanted = listed(self.value)
        found = {needle: self._first(view, needle) for needle in wanted}
        missing = [needle for needle, evidence in found.items() if evidence is None]
        evidence = next((e for e in found.values() if e), "")
        note = "missing: " + ", ".join(missing) if missing else ""
        return Finding(verdict(not missing), 1 - len(missing) / len(found), evidence, note)


@SCORERS.register("equals")
@dataclass(frozen=True)
class Equals(Check):
    """Passes if the whole text is one of the values, apart from case, spaces, quotes and a final full stop."""

    value: Texts

    def __post_init__(self) -> None:
        listed(self.value)

    def score(self, view: View) -> Finding:
        """Evidence is the whole text."""
        said = plain(view.text).rstrip(".。!！ ")
        hit = any(said == plain(v).rstrip(".。!！ ") for v in listed(self.value))
        return Finding(verdict(hit), float(hit), view.text if hit else "")


@SCORERS.register("starts_with")
@dataclass(frozen=True)
class StartsWith(Check):
    """Passes if the text begins with one of the values."""

    value: Texts

    def __post_init__(self) -> None:
        listed(self.value)

    def score(self, view: View) -> Finding:
        """Evidence is the beginning that matched."""
        text = normalise(view.text)
        for value in map(plain, listed(self.value)):
            if text.text.startswith(value):
                return Finding("pass", 1.0, text.quote(0, len(value)))
        return Finding("fail", 0.0)
