"""The grammar and the slips of typing behind the made-up conversations."""

import random
from pathlib import Path

import pytest
import yaml

from samples.grammar import PhraseError, expand
from samples.noise import hurry, slip


def all_of(phrase: str, slots: dict[str, str | list[str]] | None = None) -> set[str]:
    rng = random.Random(0)
    return {expand(phrase, rng, slots) for _ in range(300)}


def test_choices_nest_and_may_be_empty() -> None:
    assert all_of("[a|b[c|d]][| e]") == {"a", "bc", "bd", "a e", "bc e", "bd e"}


def test_slots_are_filled_and_expanded() -> None:
    assert all_of("<x>!", {"x": ["[1|2]", "3"]}) == {"1!", "2!", "3!"}


@pytest.mark.parametrize("phrase", ["[a|b", "a]", "<nothing>"])
def test_a_wrong_phrase_is_refused(phrase: str) -> None:
    with pytest.raises(PhraseError):
        expand(phrase, random.Random(0))


def test_a_slip_spares_numbers_and_short_words() -> None:
    rng = random.Random(3)
    assert slip("it is K-4821", rng) == "it is K-4821"
    assert any(slip("a kettle", rng) != "a kettle" for _ in range(5))


def test_hurry_keeps_what_was_said() -> None:
    rng = random.Random(1)
    typed = [hurry("where is K-4821?", rng, slips=0.0).casefold() for _ in range(200)]
    assert all("where is k-4821" in line for line in typed)


def test_every_phrase_of_every_bank_can_be_read() -> None:
    class Anything(dict[str, str]):
        def __contains__(self, key: object) -> bool:
            return True

        def __missing__(self, key: str) -> str:
            return "x"

    def walk(node: object) -> None:
        if isinstance(node, str):
            expand(node, random.Random(0), Anything())
        elif isinstance(node, dict):
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    banks = sorted(Path(__file__).parents[3].glob("samples/**/phrases/*.yaml"))
    assert len(banks) >= 10
    for path in banks:
        walk(yaml.safe_load(path.read_text(encoding="utf-8")))
