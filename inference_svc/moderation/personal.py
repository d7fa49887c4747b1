"""Personal data: e-mail addresses, telephone numbers, payment cards, Chinese resident ids.

Rules with a check digit are checked by it, telephone numbers by `phonenumbers` (Google's libphonenumber), so that order
numbers stay what they are. What the operator's own instructions contain, such as the shop's address, is not personal.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import phonenumbers

from inference_svc.moderation.base import (
    MODERATORS,
    Finding,
    ModerationContext,
    Moderator,
    ModeratorEnvironment,
    Response,
    Scanner,
)

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_NUMBERS = re.compile(
    r"(?<![A-Za-z0-9_+(])(?<![A-Za-z]-)[+(]{0,2}[0-9](?:[-() .]{0,3}[0-9]){6,39}[xX]?(?![A-Za-z0-9_])"
)
_FEWEST_DIGITS = 7
"""`_NUMBERS` finds nothing in a text with fewer, so that needs no search."""
_GROUP = re.compile(r"[+(]*[0-9]+[xX]?")
# What may still become one of the above: a word, or digits with the signs that people put between them.
_OPEN_WORD = re.compile(r"[A-Za-z0-9._%+@-]{1,160}\Z")
_OPEN_NUMBER = re.compile(r"(?<![A-Za-z0-9_])[+(]{0,2}[0-9](?:[-() .]{0,3}[0-9]){0,39}[xX]?[-() .]{0,3}\Z|[+(]{1,2}\Z")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_CONTEXT = 4
"""Characters kept before what is undecided, for the patterns that look behind."""
_LONGEST_OPEN = 200
"""Characters at the end of a text in which the patterns of what is open have to be looked for."""
MOST_TRIES = 300
"""Sequences of digits in one text that are looked up as telephone numbers. A run of single digits with spaces between
them has hundreds, each of which takes a hundredth of a millisecond or more; beyond this many, whatever has as many
digits as a telephone number counts as one."""

PLACEHOLDERS = {"email": "[email]", "phone": "[phone]", "card": "[card]", "cn_id": "[id]"}
"""Categories, and what stands in their place when they are redacted."""


def luhn_valid(digits: str) -> bool:
    """Check digit of payment cards (ISO/IEC 7812-1)."""
    doubled = (int(d) * 2 if i % 2 else int(d) for i, d in enumerate(reversed(digits)))
    return sum(d - 9 if d > 9 else d for d in doubled) % 10 == 0


def chinese_id_valid(text: str) -> bool:
    """Check character of a resident id (GB 11643-1999, ISO 7064 MOD 11-2) and a date of birth that exists on paper."""
    if not re.fullmatch(r"[1-9]\d{5}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]", text):
        return False
    total = sum(int(d) * w for d, w in zip(text, _ID_WEIGHTS, strict=False))
    return "10X98765432"[total % 11] == text[17].upper()


@dataclass(frozen=True)
class PersonalParameters:
    """Settings of `personal`.

    Attributes:
        categories: which of `email`, `phone`, `card`, `cn_id` to look for.
        regions: countries (ISO 3166) whose telephone numbers are known without a country code.
        allow: texts that are never personal, such as the shop's own address.
    """

    categories: tuple[str, ...] = ("email", "phone", "card", "cn_id")
    regions: tuple[str, ...] = ("US", "CN")
    allow: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = set(self.categories) - PLACEHOLDERS.keys()
        if unknown:
            raise ValueError(f"unknown categories {sorted(unknown)}; there are {', '.join(PLACEHOLDERS)}")


class PersonalScanner:
    """Reads one text for the categories of `parameters`."""

    def __init__(self, parameters: PersonalParameters, system_prompt: str) -> None:
        self.safe = 0
        self._parameters = parameters
        self._categories = frozenset(parameters.categories)
        self._allowed = system_prompt
        self._window = ""
        self._offset = 0
        self._tries = MOST_TRIES

    def feed(self, text: str, *, final: bool) -> list[Finding]:
        """See `Scanner`."""
        self._window += text
        end = self._offset + len(self._window)
        hold = end if final else self._offset + self._open_from()
        found = []
        for start, stop, category in self._spans(self.safe - self._offset):
            # A span that reaches into what is still open may grow, and is looked at again with the next piece.
            if self._offset + stop <= hold:
                span = self._window[start:stop]
                if span not in self._parameters.allow and span not in self._allowed:
                    found.append(
                        Finding(self._offset + start, self._offset + stop, category, 1.0, PLACEHOLDERS[category])
                    )
            else:
                hold = min(hold, self._offset + start)
        self.safe = max(self.safe, hold)
        keep = max(0, self.safe - self._offset - _CONTEXT)
        self._window, self._offset = self._window[keep:], self._offset + keep
        return found

    def _open_from(self) -> int:
        begin = max(0, len(self._window) - _LONGEST_OPEN)
        word, number = _OPEN_WORD.search(self._window, begin), _OPEN_NUMBER.search(self._window, begin)
        return min(m.start() if m else len(self._window) for m in (word, number))

    def _spans(self, begin: int) -> Iterator[tuple[int, int, str]]:
        taken = begin
        spans: list[tuple[int, int, str]] = []
        if "email" in self._categories and "@" in self._window:
            spans += [(m.start(), m.end(), "email") for m in _EMAIL.finditer(self._window, begin)]
        if sum(map(self._window.count, string.digits)) >= _FEWEST_DIGITS:
            for run in _NUMBERS.finditer(self._window, begin):
                spans += self._numbers(run.start(), run.group())
        for span in sorted(spans):
            if span[0] >= taken:
                taken = span[1]
                yield span

    def _numbers(self, offset: int, run: str) -> Iterator[tuple[int, int, str]]:
        """Numbers in a run of digit groups: the longest sequence of whole groups that is something, and so on."""
        groups = [(m.start(), m.end()) for m in _GROUP.finditer(run)]
        first = 0
        while first < len(groups):
            for last in range(len(groups) - 1, first - 1, -1):
                start, stop = groups[first][0], groups[last][1]
                category = self._kind(run[start:stop])
                if category:
                    yield offset + start, offset + stop, category
                    first = last
                    break
            first += 1

    def _kind(self, text: str) -> str:
        digits = re.sub(r"[^0-9Xx]", "", text)
        if "cn_id" in self._categories and len(digits) == 18 and chinese_id_valid(digits):
            return "cn_id"
        if not digits.isdigit():
            return ""
        if "card" in self._categories and 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn_valid(digits):
            return "card"
        if "phone" in self._categories and 7 <= len(digits) <= 15 and self._is_phone(text):
            return "phone"
        return ""

    def _is_phone(self, text: str) -> bool:
        if self._tries <= 0:
            return True
        self._tries -= 1
        for region in (None,) if text.startswith("+") else self._parameters.regions:
            try:
                if phonenumbers.is_valid_number(phonenumbers.parse(text, region)):
                    return True
            except phonenumbers.NumberParseException:
                continue
        return False


@MODERATORS.register("personal")
class PersonalModerator(Moderator):
    """Looks for personal data in both directions."""

    Parameters: ClassVar[type[Any]] = PersonalParameters
    natural: ClassVar[Response] = Response.REDACT

    def __init__(self, parameters: PersonalParameters, environment: ModeratorEnvironment) -> None:
        self._parameters = parameters

    def open(self, context: ModerationContext) -> Scanner:
        """See `Moderator`."""
        return PersonalScanner(self._parameters, context.system_prompt)
