"""Checks of form: length and no_repeat."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from rapidfuzz import fuzz

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.text import ngrams, plain, sentences, words


@SCORERS.register("length")
@dataclass(frozen=True)
class Length(Check):
    """Passes if the text keeps within every bound given. A Chinese character counts as one word."""

    min_chars: int | None = None
    max_chars: int | None = None
    min_words: int | None = None
    max_words: int | None = None
    max_sentences: int | None = None

    def __post_init__(self) -> None:
        bounds = (self.min_chars, self.max_chars, self.min_words, self.max_words, self.max_sentences)
        if all(bound is None for bound in bounds):
            raise ValueError("length needs at least one of min_chars, max_chars, min_words, max_words, max_sentences")
        if any(bound is not None and bound < 0 for bound in bounds):
            raise ValueError("bounds must be 0 or more")

    def score(self, view: View) -> Finding:
        """The note says which bound was missed, and by how much."""
        text = view.text.strip()
        measures = {"chars": len(text), "words": len(words(text)), "sentences": len(sentences(text))}
        missed = []
        for unit, have in measures.items():
            low, high = getattr(self, f"min_{unit}", None), getattr(self, f"max_{unit}", None)
            if low is not None and have < low:
                missed.append(f"{have} {unit}, at least {low} asked")
            if high is not None and have > high:
                missed.append(f"{have} {unit}, at most {high} asked")
        return Finding(verdict(not missed), float(not missed), note="; ".join(missed))


def loop(text: str, *, n: int = 4, times: int = 3) -> str | None:
    """A run of `n` words that occurs at least `times` times in `text`, or None; short lists and greetings don't
    reach it."""
    tokens = words(plain(text))
    # a shorter period repeated often enough is a loop too: "no no no no no no"
    for size, least in ((n, times), (2, times + 2), (1, times + 3)):
        counts = Counter(ngrams(tokens, size))
        if size < n:
            run = _longest_run(tokens, size)
            if run is not None and run[1] >= least:
                return run[0]
            continue
        gram, count = counts.most_common(1)[0] if counts else ((), 0)
        if count >= least:
            return _joined(gram)
    return None


def _longest_run(tokens: list[str], size: int) -> tuple[str, int] | None:
    """The group of `size` tokens that is repeated back to back most often, and how often."""
    best: tuple[str, int] | None = None
    for offset in range(size):
        groups = [tuple(tokens[i : i + size]) for i in range(offset, len(tokens) - size + 1, size)]
        count = 0
        for previous, group in zip([None, *groups], groups, strict=False):
            count = count + 1 if group == previous else 1
            if best is None or count > best[1]:
                best = (_joined(group), count)
    return best


def _joined(gram: tuple[str, ...]) -> str:
    return "".join(gram) if gram and not gram[0].isascii() else " ".join(gram)


@SCORERS.register("no_repeat")
@dataclass(frozen=True)
class NoRepeat(Check):
    """Passes if the text neither loops nor repeats an earlier reply.

    Attributes:
        n: length in words of the run that must not recur.
        times: how often it may not occur.
        similarity: likeness (0 to 100) to an earlier reply that counts as a repetition; short replies are exempt.
        min_words: replies shorter than this may recur, such as "You're welcome!".
    """

    n: int = 4
    times: int = 3
    similarity: float = 90.0
    min_words: int = 6

    error = "repeat_loop"
    forbidden_error = "repeat_loop"

    def __post_init__(self) -> None:
        if self.n < 1 or self.times < 2:
            raise ValueError("n must be at least 1 and times at least 2")

    def score(self, view: View) -> Finding:
        """Evidence is the repeated passage."""
        looped = loop(view.text, n=self.n, times=self.times)
        if looped is not None:
            return Finding("fail", 0.0, looped, "repeats itself")
        said = plain(view.text)
        if len(words(said)) >= self.min_words:
            for earlier in view.earlier:
                if fuzz.ratio(said, plain(earlier)) >= self.similarity:
                    return Finding("fail", 0.0, view.text[:200], "repeats an earlier reply")
        return Finding("pass", 1.0)
