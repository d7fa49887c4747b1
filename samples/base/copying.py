"""Conversations that can only be answered by copying: what was said, and what the system prompt holds under a name.

Small models learn topics long before they learn to copy; a share of these is meant to make them copy order numbers and
names that no corpus has seen.
"""

import random
from collections.abc import Sequence

from samples.base import banks
from samples.grammar import bank

Message = dict[str, str]


def copying(language: str, words: list[str], rng: random.Random) -> list[Message]:
    """One such conversation, system prompt included.

    Args:
        language: `en` or `zh`.
        words: everyday words among the things to copy.
        rng: the source of chance.
    """
    ways = bank(banks.PHRASES / "copying.yaml")[language]
    keys = rng.sample(ways["keys"], rng.randint(1, 6))
    facts = {key: _thing(language, words, rng) for key in keys}
    mark, end = ("：", "。") if language == "zh" and rng.random() < 0.6 else (": ", ".")
    lines = [f"{key[:1].upper()}{key[1:]}{mark}{value}{end}" for key, value in facts.items()]
    messages = [{"role": "system", "content": (" " if rng.random() < 0.6 else "\n").join(lines)}]
    for _ in range(rng.randint(2, 5)):
        if rng.random() < 0.35:
            reply = ways["list"].join(_thing(language, words, rng) for _ in range(rng.randint(1, 5)))
            asked = rng.choice(ways["echo"]).format(reply)
        else:
            key = rng.choice(keys)
            asked, reply = rng.choice(ways["ask"]).format(key), ways["answer"].format(key, facts[key])
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": reply}]
    return messages


def _thing(language: str, words: list[str], rng: random.Random) -> str:
    """Something to copy: a number, a name that nobody has, a word, a date, or some of them."""
    months = banks.world()["months"]
    match rng.randrange(7):
        case 0 | 1:
            letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(rng.randint(1, 2)))
            return f"{letters}-{rng.randrange(1000, 100000)}"
        case 2:
            return invented_name(language, rng)
        case 3:
            return rng.choice(words)
        case 4:
            return f"{rng.randint(1, 28)} {rng.choice(months)}"
        case 5:
            return f"{invented_name(language, rng)} {rng.choice(words)}"
        case _:
            state = rng.choice(bank(banks.PHRASES / "copying.yaml")["states"])
            return f"{rng.choice(words)}, {state} {rng.randint(1, 28)} {rng.choice(months)}"


def invented_name(language: str, rng: random.Random) -> str:
    """A name of syllables that no list holds."""
    if language == "zh" and rng.random() < 0.7:
        han = bank(banks.PHRASES / "copying.yaml")["han"]
        return "".join(rng.choice(han) for _ in range(rng.randint(2, 3)))
    syllables = rng.randint(1, 3)
    return "".join(
        rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "l"])
        for _ in range(syllables)
    ).capitalize()


def invented_item(language: str, items: Sequence[str], rng: random.Random) -> str:
    """One of the goods with a word before it that makes it one that no list holds."""
    word = rng.choice((invented_name(language, rng).lower(), rng.choice(items).split()[-1]))
    return f"{word}{'' if language == 'zh' else ' '}{rng.choice(items)}"
