"""Text as the rest of the mesh may rely on it: valid Unicode, no control characters, one kind of line break.

Knows nothing of conversations. Everything that leaves the service as protobuf `string` must have passed here, because
protobuf refuses lone surrogates and a stray NUL breaks tools further on.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Any

_BREAKS = re.compile("\r\n|\r|\u0085|\u2028|\u2029")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufffe\uffff]")
_DIRTY = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff\ud800-\udfff]")
_NOT_LETTERS = re.compile(r"[\W\d_]+")
_SLUG = re.compile(r"[^a-z0-9]+")

MAX_ID = 63
"""Longest id that fits a DNS label, which is what a resource name's segment may be (AIP-122)."""


def clean(text: str) -> str:
    """`text` with line breaks as `\\n`, control characters removed and lone surrogates replaced by U+FFFD."""
    if not _DIRTY.search(text):
        return text
    return _CONTROL.sub("", _SURROGATES.sub("\ufffd", _BREAKS.sub("\n", text)))


def scrub(value: Any) -> Any:
    """A decoded JSON value in which every lone surrogate is replaced by U+FFFD, so that it can be written as UTF-8."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [scrub(part) for part in value]
    if isinstance(value, dict):
        return {scrub(key): scrub(part) for key, part in value.items()}
    return value


def letters(text: str) -> str:
    """The letters of `text` alone, case-folded: equal for texts that differ in numbers and punctuation only."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text).casefold())


def slug(text: str) -> str:
    """`text` as the last segment of a resource name: lower-case letters, digits and hyphens, at most 63 characters.

    A text without one Latin letter or digit (a Chinese name, say) becomes the start of its digest, so that the result
    is never empty and stays the same from run to run.
    """
    plain = _SLUG.sub("-", text.lower()).strip("-")
    if plain and len(plain) <= MAX_ID:
        return plain
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:12]
    return f"{plain[: MAX_ID - 13].rstrip('-')}-{digest}".lstrip("-")
