"""What hurried customers do to a sentence: typing slips, missing capitals, shouting, lost punctuation."""

import random

_NEAR = {
    "a": "sq", "b": "vn", "c": "xv", "d": "sf", "e": "wr", "f": "dg", "g": "fh", "h": "gj", "i": "uo", "j": "hk",
    "k": "jl", "l": "k", "m": "n", "n": "bm", "o": "ip", "p": "o", "q": "w", "r": "et", "s": "ad", "t": "ry",
    "u": "yi", "v": "cb", "w": "qe", "x": "zc", "y": "tu", "z": "x",
}  # fmt: skip


def slip(text: str, rng: random.Random) -> str:
    """`text` with one typing slip in a word of four letters or more; words with digits stay, they are order numbers."""
    words = text.split(" ")
    long = [i for i, word in enumerate(words) if len(word) >= 4 and word.isascii() and word.isalpha()]
    if not long:
        return text
    index = rng.choice(long)
    word = words[index]
    at = rng.randrange(1, len(word) - 1)
    match rng.randrange(4):
        case 0:
            word = word[:at] + word[at + 1 :]
        case 1:
            word = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        case 2:
            word = word[:at] + word[at] + word[at:]
        case _:
            word = word[:at] + rng.choice(_NEAR.get(word[at].lower(), word[at])) + word[at + 1 :]
    words[index] = word
    return " ".join(words)


def hurry(text: str, rng: random.Random, *, slips: float = 0.15) -> str:
    """`text` as a customer may have typed it; `slips` is the share of sentences with a typing slip."""
    if rng.random() < slips:
        for _ in range(rng.choices((1, 2, 4), (70, 22, 8))[0]):
            text = slip(text, rng)
    style = rng.random()
    if style < 0.30:
        text = text.lower()
    elif style < 0.80:
        text = text[:1].upper() + text[1:]
    elif style < 0.84:
        text = text.upper()
    if rng.random() < 0.25:
        text = text.rstrip(".?!。？！")
    elif rng.random() < 0.06:
        text += rng.choice(["!", "!!", "?", "??", "...", " :)", " thx"]) if text.isascii() else rng.choice("！？～")
    return text
