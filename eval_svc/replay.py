"""A suite out of held-back conversations: the model gets the real history, and its reply is compared with the real one.

Each sampled agent turn becomes a scenario of one turn; those of one conversation form a cluster. It knows no dataset
service: conversations come through a Protocol.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from chatmill.errors import FailedPrecondition
from eval_svc import seeds
from eval_svc.glitches import Scene, glitches
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.spec import ReplaySpec
from eval_svc.suite import Suite
from eval_svc.transcript import Message, Reply

MAX_MESSAGE_CHARS = 20_000
"""Turns with a longer reply are left out; they are pasted documents, not answers."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One held-back conversation.

    Attributes:
        id: of the item in its dataset.
        handover_index: index into `messages` of the turn at which a person should have taken over, or None.
    """

    id: str
    messages: tuple[Message, ...]
    facts: tuple[str, ...] = ()
    handover_index: int | None = None
    handover_reason: str = ""
    language: str = ""


class HeldBack(Protocol):
    """Where held-back conversations come from."""

    def test_conversations(self, dataset: str) -> AsyncIterator[Conversation]:
        """The test split in order. Raises NotFound if there is no such dataset."""


async def replay_suite(spec: ReplaySpec, source: HeldBack, seed: int) -> Suite:
    """The suite for a dataset.

    Args:
        seed: draws the conversations; the same seed draws the same ones from the same dataset.

    Raises:
        NotFound: no such dataset.
        FailedPrecondition: nothing is held back, or nothing of it can be replayed.
    """
    conversations = [c async for c in source.test_conversations(spec.dataset)]
    if not conversations:
        raise FailedPrecondition(
            f"{spec.dataset} has no held-back conversations; create it with a test_fraction above 0",
            reason="NO_TEST_SPLIT",
        )
    drawn = sorted(conversations, key=lambda c: seeds.derive("replay", seed, c.id))
    if spec.max_conversations:
        drawn = drawn[: spec.max_conversations]
    scenarios = tuple(
        scenario_from_mapping(raw, f"{spec.dataset}/items/{c.id}")
        for c in sorted(drawn, key=lambda c: c.id)
        for raw in _scenarios(c, spec)
    )
    if not scenarios:
        raise FailedPrecondition(
            f"no held-back conversation of {spec.dataset} has an agent turn that answers a customer"
        )
    name = spec.dataset.removeprefix("datasets/")
    told = (
        f"{len(scenarios)} real agent turns of {len(drawn)} held-back conversations; pass from {spec.pass_ratio:.0f}%"
    )
    return Suite(f"replay-{name}", "1", scenarios, f"Replay of {name}", told)


def _scenarios(conversation: Conversation, spec: ReplaySpec) -> Iterator[dict[str, Any]]:
    turns = _spread(list(_answers(conversation)), spec.max_turns)
    for index in turns:
        yield _scenario(conversation, index, spec.pass_ratio)


def _answers(conversation: Conversation) -> Iterator[int]:
    """Indexes of agent turns that answer a customer and come no later than the handover."""
    last = conversation.handover_index if conversation.handover_index is not None else len(conversation.messages)
    for i in range(1, len(conversation.messages)):
        message, before = conversation.messages[i], conversation.messages[i - 1]
        if i > last or message.role != "assistant" or before.role != "user" or not before.content.strip():
            continue
        if i == last or (message.content.strip() and len(message.content) <= MAX_MESSAGE_CHARS):
            yield i


def _spread(turns: Sequence[int], most: int) -> Sequence[int]:
    """At most so many of them, evenly spread, the first and the last among them."""
    if not most or len(turns) <= most:
        return turns
    if most == 1:
        return [turns[len(turns) // 2]]
    return [turns[round(k * (len(turns) - 1) / (most - 1))] for k in range(most)]


def _scenario(conversation: Conversation, index: int, pass_ratio: float) -> dict[str, Any]:
    handover = index == conversation.handover_index
    real = "" if handover else conversation.messages[index].content
    who = {"user": "user", "assistant": "agent", "tool": "tool"}
    history = [{who[m.role]: m.content} for m in conversation.messages[: index - 1] if m.role in who]
    user = conversation.messages[index - 1].content
    check: dict[str, Any] = {"id": "like-the-real-reply", "type": "replay", "value": real, "threshold": pass_ratio}
    if handover:
        check |= {"handoff": True, "error": "missed_handoff"}
    return {
        "schema": 1,
        "id": f"{slug(conversation.id)}.{index}",
        "title": user[:80],
        "kind": "replay",
        "severity": "minor",
        "source": {"type": "transcript", "conversation": conversation.id, "split": "test"},
        "persona": {"language": conversation.language.split("-")[0]},
        "memory": {"facts": list(conversation.facts)},
        "history": history,
        "turns": [{"user": user, "expect": [check]}],
        "allow": tolerated(
            real,
            user,
            [m.content for m in conversation.messages[:index] if m.role == "assistant"],
            conversation.language,
        ),
    }


def slug(text: str) -> str:
    """An id of the dataset as an id of a scenario."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower()).strip("-._")[:80] or "conversation"


def tolerated(real: str, user: str, earlier: Sequence[str], language: str) -> list[str]:
    """Error classes that the real reply itself would be found guilty of: logs hold no actions, so claims look false.

    Args:
        user: the words that it answers.
        earlier: the agent's replies before it.
    """
    scene = Scene(Reply(text=real, finish_reason="stop"), user=user, earlier=tuple(earlier), language=language)
    return sorted({"false_action", *(g.error for g in glitches(scene) if g.error != "empty")})
