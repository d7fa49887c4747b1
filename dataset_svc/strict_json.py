"""JSON as the standard has it: finite numbers only, and text that can be written as UTF-8 again.

Python's reader takes `NaN`, turns `1e999` into infinity and keeps halves of characters; each of these would only fail
later, when the value is stored or sent.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from dataset_svc.text import scrub


def loads(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is not JSON. ValueError: it is not usable, or nested too deeply.
    """
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
        return scrub(value) if may_have_surrogate(text) else value
    except RecursionError:
        raise ValueError("nested too deeply") from None


def decoder() -> json.JSONDecoder:
    """A decoder with the same rules, but for halves of characters (see `may_have_surrogate`)."""
    return json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite)


def may_have_surrogate(text: str) -> bool:
    """True if `text` may hold an escaped half of a character; a cheap test that errs towards True."""
    return "\\ud" in text or "\\uD" in text


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
