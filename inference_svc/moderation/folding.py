"""Folds away how a word is dressed up: case, width, accents, look-alike letters, digits for letters, inserted signs.

Every folded character remembers which character it came from and how many signs stood before it, so that a match in the
folded text is a span of the real one. This module knows no word list.

Source of the look-alikes: Unicode Technical Standard 39 (confusables.txt), the part that people type.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field

MAX_GAP = 3
"""Signs between two letters that are still taken for an attempt to hide a word. More of them end it."""
BREAK = "\0"
"""Stands in the folded text where a gap was wider; no phrase contains it."""

_LOOKALIKES = dict(
    zip(
        "аеорсухѕіјԁһкмтвнԛԝզօոսցհεοαρτυκνιχωημγɡıℓǀꓲƖ×",
        "aeopcyxsijdhkmtbhqwqonugheoaptukvixwnuygillilx",
        strict=True,
    )
)
_DIGITS = {"0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "@": "a", "$": "s", "!": "i", "€": "e", "£": "l"}


class _Fold(dict[str, str]):
    """Character to its plain form: lower case, normal width, no accent, no look-alike; empty for what is invisible."""

    def __missing__(self, char: str) -> str:
        parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", char).casefold())
        kept = (c for c in parts if unicodedata.category(c) not in ("Mn", "Me", "Cf", "Cc") or c in "\n\t\r")
        plain = "".join(_LOOKALIKES.get(c, c) for c in kept)
        # Combining a base and its mark again keeps Korean syllables and the like as one character.
        self[char] = plain = unicodedata.normalize("NFC", plain)
        return plain


_FOLD = _Fold()
_SENTENCE_ENDS = frozenset("。！？；，、：")


def is_ideograph(char: str) -> bool:
    """Whether words of this script are written without spaces."""
    return "\u3040" <= char <= "\u30ff" or "\u3400" <= char <= "\u9fff" or "\U00020000" <= char <= "\U0003ffff"


@dataclass(slots=True)
class Folded:
    """A folded text that grows at its end and is forgotten at its beginning.

    Attributes:
        text: what phrases are matched against; digits that look like letters are letters here.
        plain: the same, digits left as they are.
        origin: for each folded character, the index of the real one.
        gap: for each folded character, how many signs stood before it.
        trailing: signs since the last folded character.
        read: real characters read so far.
        forgotten: whether there was text before the first folded character.
    """

    text: str = ""
    plain: str = ""
    origin: list[int] = field(default_factory=list)
    gap: list[int] = field(default_factory=list)
    trailing: int = 0
    read: int = 0
    forgotten: bool = False

    def append(self, new: str) -> None:
        """Fold and add `new`."""
        text, plain = [], []
        for index, char in enumerate(new, self.read):
            for folded in _FOLD[char]:
                if not (folded.isalnum() or folded in _DIGITS):
                    self.trailing = MAX_GAP + 1 if folded in _SENTENCE_ENDS else self.trailing + 1
                    continue
                if self.trailing > MAX_GAP:
                    text.append(BREAK)
                    plain.append(BREAK)
                    self.origin.append(index)
                    self.gap.append(self.trailing)
                text.append(_DIGITS.get(folded, folded))
                plain.append(folded)
                self.origin.append(index)
                self.gap.append(self.trailing)
                self.trailing = 0
        self.text += "".join(text)
        self.plain += "".join(plain)
        self.read += len(new)

    def forget(self, count: int) -> None:
        """Drop the first `count` folded characters."""
        self.text, self.plain = self.text[count:], self.plain[count:]
        del self.origin[:count], self.gap[:count]
        self.forgotten = self.forgotten or count > 0


def fold(text: str) -> Folded:
    """A whole text, folded."""
    folded = Folded()
    folded.append(text)
    return folded
