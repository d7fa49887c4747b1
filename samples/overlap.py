"""Which lines two collections of conversations share: training and evaluation must not meet."""

import unicodedata
from functools import cache
from pathlib import Path

from eval_svc.suite import read_suite

SUITES = (Path(__file__).with_name("suite"), Path(__file__).with_name("suite-dev"))
"""The shop's scenarios: the reported ones, and those that serve to improve the model."""


def bare(text: str) -> str:
    """Only letters, digits and symbols: NFKC, without case, punctuation and white space."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in folded if _category(c) not in "PZC")


@cache
def asked() -> frozenset[str]:
    """`bare` of every customer's line of all `SUITES`."""
    return frozenset().union(*map(asked_in, SUITES))


@cache
def _category(character: str) -> str:
    return unicodedata.category(character)[0]


def asked_in(suite: Path) -> set[str]:
    """`bare` of every customer's line of the suite in the folder, in all its wordings."""
    return {bare(line) for s in read_suite(suite).scenarios for t in s.turns for line in (t.user, *t.variants)}
