"""What a dataset looks like in numbers, gathered in one pass in bounded memory.

Lengths are counted in Unicode code points, and in tokens too when a tokenizer is given. Percentiles are exact:
lengths are whole numbers, so counting each length once is enough.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dataset_svc.dataset import Item

CHARACTER_LIMITS = (1_000, 2_000, 4_000, 8_000, 16_000)
TOKEN_LIMITS = (256, 512, 1_024, 2_048, 4_096, 8_192)
"""Limits at which the over-long share is counted: usual training lengths, and about four characters a token."""

CountTokens = Callable[[str], int]
"""Number of tokens of a text, without special tokens."""

OTHERS = "..."
MAX_VALUES = 500
"""Labels and reasons beyond so many are counted together under `OTHERS`, so that statistics fit one answer."""

_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Distribution:
    """How a quantity is distributed; all zero when `count` is."""

    count: int = 0
    mean: float = 0.0
    min: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    max: float = 0.0


def distribution(counts: Mapping[int, int], scale: float = 1.0) -> Distribution:
    """The distribution of whole numbers by how often each occurs, divided by `scale`. Percentiles are nearest-rank."""
    total = sum(counts.values())
    if not total:
        return Distribution()
    ordered = sorted(counts.items())

    def rank(share: float) -> float:
        wanted, seen = math.ceil(share * total), 0
        for value, count in ordered:
            seen += count
            if seen >= wanted:
                return value / scale
        raise AssertionError("ranks end at the total")

    mean = sum(value * count for value, count in ordered) / total / scale
    return Distribution(total, mean, ordered[0][0] / scale, rank(0.5), rank(0.95), ordered[-1][0] / scale)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths in one unit.

    Attributes:
        user: per message of the user. assistant: per message of the assistant. conversation: all messages together.
        longer_than: conversations longer than a limit, by limit.
    """

    user: Distribution = field(default_factory=Distribution)
    assistant: Distribution = field(default_factory=Distribution)
    conversation: Distribution = field(default_factory=Distribution)
    longer_than: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Statistics:
    """A dataset in numbers; counts are conversations unless said otherwise.

    Attributes:
        items: all.
        turns: user and assistant messages per conversation.
        characters: lengths in code points.
        tokens: lengths in tokens, if a tokenizer was given.
        languages: by BCP 47 code.
        labels: by label; the empty text stands for none.
        handovers: those in which a person should have taken over.
        handover_position: where in the conversation, from 0 (first message) to 1 (last).
        handover_reasons: by reason.
        role_problems: by departure from strict alternation of user and assistant (tool messages apart).
        not_alternating: those with at least one such departure inside.
        ending_on_user: those whose last word is the user's.
        splits: by split.
        empty_messages: messages without text that were taken out before.
    """

    items: int
    turns: Distribution
    characters: Lengths
    tokens: Lengths | None
    languages: Mapping[str, int]
    labels: Mapping[str, int]
    handovers: int
    handover_position: Distribution
    handover_reasons: Mapping[str, int]
    role_problems: Mapping[str, int]
    not_alternating: int
    ending_on_user: int
    splits: Mapping[str, int]
    empty_messages: int = 0

    def to_json(self) -> str:
        """As the text of `statistics.json`."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


def from_json(text: str | bytes) -> Statistics:
    """The opposite of `Statistics.to_json`."""
    data = json.loads(text)
    for key in ("turns", "handover_position"):
        data[key] = Distribution(**data[key])
    for key in ("characters", "tokens"):
        data[key] = _lengths_from(data[key]) if data[key] else None
    return Statistics(**data)


class _LengthCounter:
    def __init__(self, measure: CountTokens, limits: tuple[int, ...]) -> None:
        self._measure = measure
        self._limits = limits
        self._by_role: dict[str, Counter[int]] = {"user": Counter(), "assistant": Counter()}
        self._conversation: Counter[int] = Counter()

    def add(self, item: Item) -> None:
        total = 0
        for message in item.messages:
            length = self._measure(message.content)
            total += length
            if message.role in self._by_role:
                self._by_role[message.role][length] += 1
        self._conversation[total] += 1

    def result(self) -> Lengths:
        longer = {str(limit): sum(n for v, n in self._conversation.items() if v > limit) for limit in self._limits}
        return Lengths(
            distribution(self._by_role["user"]),
            distribution(self._by_role["assistant"]),
            distribution(self._conversation),
            longer,
        )


class Gatherer:
    """Takes item after item and gives the statistics at the end.

    Args:
        count_tokens: a tokenizer's measure; without it lengths are in characters only.

    Attributes:
        empty_messages: messages without text that were taken out before, as counted by the caller.
    """

    def __init__(self, count_tokens: CountTokens | None = None) -> None:
        self.empty_messages = 0
        self._characters = _LengthCounter(len, CHARACTER_LIMITS)
        self._tokens = _LengthCounter(count_tokens, TOKEN_LIMITS) if count_tokens else None
        self._turns: Counter[int] = Counter()
        self._positions: Counter[int] = Counter()
        self._languages: Counter[str] = Counter()
        self._labels: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._problems: Counter[str] = Counter()
        self._splits: Counter[str] = Counter()
        self._items = self._not_alternating = self._ending_on_user = 0

    def add(self, item: Item) -> None:
        """Count one item."""
        self._items += 1
        self._characters.add(item)
        if self._tokens:
            self._tokens.add(item)
        self._languages[item.language] += 1
        self._labels[item.label or ""] += 1
        self._splits[item.split] += 1
        if item.handover:
            self._reasons[item.handover.reason] += 1
            last = max(1, len(item.messages) - 1)
            self._positions[round(_STEPS * item.handover.index / last)] += 1
        self._roles([m.role for m in item.messages])

    def result(self) -> Statistics:
        """The statistics of all items so far."""
        return Statistics(
            items=self._items,
            turns=distribution(self._turns),
            characters=self._characters.result(),
            tokens=self._tokens.result() if self._tokens else None,
            languages=dict(self._languages.most_common()),
            labels=_most_common(self._labels),
            handovers=sum(self._reasons.values()),
            handover_position=distribution(self._positions, _STEPS),
            handover_reasons=_most_common(self._reasons),
            role_problems=dict(self._problems.most_common()),
            not_alternating=self._not_alternating,
            ending_on_user=self._ending_on_user,
            splits=dict(self._splits),
            empty_messages=self.empty_messages,
        )

    def _roles(self, roles: list[str]) -> None:
        spoken = [role for role in roles if role in ("user", "assistant")]
        self._turns[len(spoken)] += 1
        problems = {f"{a} twice in a row" for a, b in itertools.pairwise(spoken) if a == b}
        self._not_alternating += bool(problems)
        if spoken[:1] == ["assistant"]:
            problems.add("begins with assistant")
        if spoken[-1:] == ["user"]:
            problems.add("ends on user")
            self._ending_on_user += 1
        if "system" in roles[1:]:
            problems.add("system message after the first")
        self._problems.update(problems)


def gather(items: Iterable[Item], count_tokens: CountTokens | None = None) -> Statistics:
    """The statistics of all `items`."""
    gatherer = Gatherer(count_tokens)
    for item in items:
        gatherer.add(item)
    return gatherer.result()


def _most_common(counts: Counter[str]) -> dict[str, int]:
    kept = dict(counts.most_common(MAX_VALUES))
    rest = counts.total() - sum(kept.values())
    return {**kept, OTHERS: kept.get(OTHERS, 0) + rest} if rest else kept


def _lengths_from(data: dict[str, Any]) -> Lengths:
    roles = {key: Distribution(**data[key]) for key in ("user", "assistant", "conversation")}
    return Lengths(**roles, longer_than=data["longer_than"])
