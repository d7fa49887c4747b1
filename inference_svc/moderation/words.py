"""Word lists: phrases that may not be said, found however they are dressed up and wherever a chunk ends.

Matching is by an Aho-Corasick automaton over the folded text (pyahocorasick), then by the rules that keep innocent
words innocent: a phrase in letters counts only between word boundaries, signs inside it only where it has a space
itself or where it is spelt out letter by letter, digits only beside real letters. Chinese needs no boundaries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import ahocorasick

from chatmill.errors import InvalidArgument
from inference_svc.moderation.base import (
    MODERATORS,
    Finding,
    ModerationContext,
    Moderator,
    ModeratorEnvironment,
    Scanner,
)
from inference_svc.moderation.folding import BREAK, MAX_GAP, Folded, fold, is_ideograph

MAX_PHRASE_CHARACTERS = 200
"""Longer phrases are refused: text is held back for as long as it could become one."""


@dataclass(frozen=True, slots=True)
class _Phrase:
    """A phrase as the automaton knows it: its folded text, the same with digits kept, where its own spaces are."""

    text: str
    plain: str
    spaces: frozenset[int]
    category: str


class WordTable:
    """An immutable set of phrases, ready to match.

    Raises:
        InvalidArgument: on `phrases`: one is empty once folded, or longer than MAX_PHRASE_CHARACTERS.
    """

    def __init__(self, phrases: Iterable[tuple[str, str]]) -> None:
        """Phrases, each with its category."""
        by_text: dict[str, list[_Phrase]] = {}
        for phrase, category in phrases:
            folded = fold(phrase.strip())
            if not folded.text or len(phrase) > MAX_PHRASE_CHARACTERS or BREAK in folded.text:
                raise InvalidArgument.field(
                    "phrases",
                    f"{phrase!r} has no letters, more than {MAX_GAP} signs in a row, or more than "
                    f"{MAX_PHRASE_CHARACTERS} characters. Give the words as they are said.",
                )
            spaces = frozenset(i for i, gap in enumerate(folded.gap) if gap)
            by_text.setdefault(folded.text, []).append(_Phrase(folded.text, folded.plain, spaces, category))
        self.size = len(by_text)
        self.longest = max(map(len, by_text), default=0)
        self._automaton: Any = ahocorasick.Automaton()
        for text, same in by_text.items():
            self._automaton.add_word(text, same)
        if by_text:
            self._automaton.make_automaton()

    def matches(self, folded: Folded, first: int, last: int) -> list[Finding]:
        """Findings whose last folded character lies in [first, last]; what follows it is known or will not come."""
        if not self.size:
            return []
        found = []
        for end, same in self._automaton.iter(folded.text):
            if not first <= end <= last:
                continue
            for phrase in same:
                start = end - len(phrase.text) + 1
                if _is_meant(phrase, folded, start, end):
                    found.append(Finding(folded.origin[start], folded.origin[end] + 1, phrase.category))
        return found

    def undecided(self, folded: Folded) -> int:
        """Index of the first folded character that may belong to a phrase which is not complete yet."""
        length = len(folded.text)
        if not self.size or folded.trailing > MAX_GAP:
            return length
        for start in range(max(0, length - self.longest), length):
            if self._automaton.match(folded.text[start:]) and _begins_word(folded, start):
                return start
        return length


def _is_meant(phrase: _Phrase, folded: Folded, start: int, end: int) -> bool:
    if not (_begins_word(folded, start) and _ends_word(folded, end)):
        return False
    plain = folded.plain[start : end + 1]
    if any(p.isdigit() and p != t for p, t in zip(phrase.plain, plain, strict=True)):
        return False
    if any(p.isalpha() for p in phrase.plain) and not any(t.isalpha() for t in plain):
        return False
    cuts = [i for i in range(start + 1, end + 1) if folded.gap[i]]
    strange = (i for i in cuts if i - start not in phrase.spaces)
    if all(is_ideograph(folded.text[i]) and is_ideograph(folded.text[i - 1]) for i in strange):
        return True
    pieces = [b - a for a, b in pairwise([start, *cuts, end + 1])]
    return max(pieces) <= 2 and 2 * pieces.count(1) >= len(pieces)


def _begins_word(folded: Folded, start: int) -> bool:
    # A sign that could stand for a letter, as in `sh!t`, is as often the punctuation beside a word.
    if folded.gap[start] > 0 or is_ideograph(folded.text[start]) or not folded.plain[start].isalnum():
        return True
    if start == 0:
        return not folded.forgotten
    return is_ideograph(folded.text[start - 1]) or not folded.plain[start - 1].isalnum()


def _ends_word(folded: Folded, end: int) -> bool:
    return is_ideograph(folded.text[end]) or end + 1 == len(folded.text) or _begins_word(folded, end + 1)


class WordScanner:
    """Reads one text against a list that may change while it reads.

    Args:
        tables: called at each piece for the lists of the moment.
    """

    def __init__(self, tables: Any) -> None:
        self.safe = 0
        self._tables = tables
        self._folded = Folded()
        self._decided = 0

    def feed(self, text: str, *, final: bool) -> list[Finding]:
        """See `Scanner`."""
        tables: Sequence[WordTable] = self._tables()
        folded = self._folded
        if not any(t.size for t in tables) and not folded.text:
            folded.read += len(text)
            self.safe = folded.read
            return []
        folded.append(text)
        length = len(folded.text)
        # The last character waits for the next, which may continue the word.
        last = length - 1 if final or folded.trailing else length - 2
        found = [f for table in tables for f in table.matches(folded, self._decided, last)]
        self._decided = max(self._decided, last + 1)
        start = length if final else min((t.undecided(folded) for t in tables), default=length)
        self.safe = max(self.safe, folded.origin[start] if start < length else folded.read)
        drop = max(0, min(start, self._decided) - 1)
        folded.forget(drop)
        self._decided -= drop
        return found


@dataclass(frozen=True)
class WordParameters:
    """Settings of `words`.

    Attributes:
        phrases: phrases that may not be said.
        files: text files with one phrase a line; `#` begins a comment. Under the operator's folders.
        category: what a finding is called.
    """

    phrases: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    category: str = "word_list"


@MODERATORS.register("words")
class WordModerator(Moderator):
    """The configured phrases, and those that an operator blocks while the service runs."""

    Parameters: ClassVar[type[Any]] = WordParameters

    def __init__(self, parameters: WordParameters, environment: ModeratorEnvironment) -> None:
        phrases = [*parameters.phrases]
        for path in parameters.files:
            lines = (line.split("#", 1)[0].strip() for line in environment.read(path).splitlines())
            phrases += [line for line in lines if line]
        self._fixed = WordTable((p, parameters.category) for p in phrases)
        self._blocked = environment.blocked
        self._version = -1
        self._added = WordTable([])

    def tables(self) -> tuple[WordTable, WordTable]:
        """The configured list and the operator's, as they are now."""
        if self._blocked.version != self._version:
            self._version = self._blocked.version
            self._added = WordTable((p, "blocked_phrase") for p in self._blocked.phrases)
        return self._fixed, self._added

    def open(self, context: ModerationContext) -> Scanner:
        """See `Moderator`."""
        return WordScanner(self.tables)
