"""Numbers in a text, in digits or in words, English and Chinese: "30", "thirty", "twenty-one", "三十", "两百五十".

A lone "one" or "一" is mostly no number ("one of us", "一下") and is taken for one only before a unit of time or money.
The text is expected to be normalised (`eval_svc.text.normalise`).
"""

from __future__ import annotations

from collections.abc import Iterator

import regex

DIGITS = regex.compile(r"(?<![\p{Latin}\d.])-?\d+(?:\.\d+)?(?![\d]|\.\d)")

_ONES = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ENGLISH = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
}
_SCALES = {"hundred": 100, "thousand": 1000}
_WORD = "|".join(sorted((*_ENGLISH, *_SCALES), key=len, reverse=True))
_SPOKEN = regex.compile(rf"\b(?:an? )?(?:{_WORD})(?:(?:-| and | )(?:{_WORD}))*\b")

_HAN = {c: i for i, c in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
# "十分" (very), "万一" (in case) and "千万" (by all means) only look like numbers
_HAN_RUN = regex.compile("(?:十分(?!钟)|万一|千万(?![元人块]))(*SKIP)(*FAIL)|[零〇一二两三四五六七八九十百千万]+")
_UNIT = regex.compile(
    r"\s*(?:business |working |calendar )?"
    r"(?:days?|weeks?|months?|years?|hours?|minutes?|euros?|dollars?|pounds?|percent|%)"
    r"|个?(?:天|日|周|星期|月|年|小时|分钟|元|块|折)"
)


def numbers(text: str) -> Iterator[tuple[int, int, float]]:
    """Start, end and value of each number, in order."""
    found = [(*match.span(), float(match.group())) for match in DIGITS.finditer(text)]
    for pattern, read in ((_SPOKEN, _english), (_HAN_RUN, _chinese)):
        for match in pattern.finditer(text):
            value = read(match.group())
            if value is not None and (value != 1 or _UNIT.match(text, match.end())):
                found.append((*match.span(), float(value)))
    yield from sorted(found)


def _english(words: str) -> int | None:
    """The value of number words; None if they make no single number, as "five six" does."""
    total = current = 0
    last = 10_000
    for word in regex.split(r"[- ]", words):
        if word in ("a", "an"):
            current = 1
        elif word == "and":
            continue
        elif word == "hundred":
            current, last = max(current, 1) * 100, 100
        elif word == "thousand":
            total, current, last = total + max(current, 1) * 1000, 0, 1000
        else:
            value = _ENGLISH[word]
            if (last < 20 or (last < 100 and value >= 10)) and last != 10_000:
                return None
            current, last = current + value, value
    return total + current


def _chinese(run: str) -> int | None:
    """The value of a run of numerals; a run without scales is read digit by digit, as in a year."""
    if not any(c in _HAN_SCALES for c in run):
        return int("".join(str(_HAN[c]) for c in run))
    total = section = 0
    digit: int | None = None
    for character in run:
        if character in _HAN:
            if digit:
                return None
            digit = _HAN[character]
        elif character == "万":
            total, section, digit = (total + section + (digit or 0)) * 10_000, 0, None
            if total == 0:
                return None
        else:
            section += (1 if digit is None else digit) * _HAN_SCALES[character]
            digit = None
    return total + section + (digit or 0)
