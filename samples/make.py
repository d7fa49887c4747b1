"""Writes the made-up shop's conversations: `python -m samples.make`. The same seed gives the same bytes."""

import argparse
import gzip
import json
import random
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from samples.overlap import asked, bare
from samples.scenes import conversation

DATA = Path(__file__).with_name("data")
COUNTS = {"en": 3000, "zh": 750}
SEED = 20261120


def conversations(language: str, count: int, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """`count` conversations of a language in the neutral shape, the same for the same seed.

    None holds a customer's line of the evaluation suites: what would is drawn again.
    """
    rng = random.Random(f"{seed}/{language}")
    number = 0
    while number < count:
        made = conversation(language, number, rng)
        if not asked() & _said(made["messages"]):
            number += 1
            yield made


def _said(messages: Sequence[dict[str, Any]]) -> set[str]:
    """`bare` of every customer's message, and of what one said in several in a row."""
    bursts = ["".join(m["content"] for m in some) for own, some in groupby(messages, _by_customer) if own]
    return {bare(text) for text in (*bursts, *(m["content"] for m in messages if _by_customer(m)))}


def _by_customer(message: dict[str, Any]) -> bool:
    return bool(message["role"] == "customer")


def packed(language: str) -> bytes:
    """The content of a language's data file: JSON lines, gzip without name and time."""
    lines = (json.dumps(c, ensure_ascii=False, sort_keys=True) for c in conversations(language, COUNTS[language]))
    return gzip.compress("".join(f"{line}\n" for line in lines).encode(), compresslevel=9, mtime=0)


def path(language: str, folder: Path = DATA) -> Path:
    """Where a language's conversations lie."""
    return folder / f"conversations.{language}.jsonl.gz"


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(prog="samples.make", description=__doc__)
    parser.add_argument("--output", type=Path, default=DATA, help="folder to write to (default: samples/data)")
    folder: Path = parser.parse_args().output
    folder.mkdir(parents=True, exist_ok=True)
    for language in COUNTS:
        path(language, folder).write_bytes(packed(language))


if __name__ == "__main__":
    main()
