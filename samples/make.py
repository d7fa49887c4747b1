"""Writes the made-up shop's conversations: `python -m samples.make`. The same seed gives the same bytes."""

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from samples.scenes import conversation

DATA = Path(__file__).with_name("data")
COUNTS = {"en": 1600, "zh": 400}
SEED = 20261120


def conversations(language: str, count: int, seed: int = SEED) -> Iterator[dict[str, Any]]:
    """`count` conversations of a language in the neutral shape, the same for the same seed."""
    rng = random.Random(f"{seed}/{language}")
    for number in range(count):
        yield conversation(language, number, rng)


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
