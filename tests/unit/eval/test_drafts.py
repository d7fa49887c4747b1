"""Scenarios out of real transcripts: what is kept, what is checked, what is left out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import yaml

from chatmill.errors import FailedPrecondition, InvalidArgument
from eval_svc.drafts import draft, draft_scenarios
from eval_svc.replay import Conversation
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.scoring import Scoring, handover_expected, score_trial
from eval_svc.transcript import Exchange, Message, Reply, Transcript, Unit


def talk(*said: str, **more: Any) -> Conversation:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(said))  # type: ignore[arg-type]
    return Conversation("Chat/42", messages, language="en", **more)


RETURNS = talk(
    "Hi, how long can I return order A-7712?",
    "Hello Ana! You can return order A-7712 within 30 days.",
    "Great, thanks. And the money?",
    "It takes 5 working days.",
    facts=("The customer is Ana.",),
)


def read(text: str) -> Any:
    return scenario_from_mapping(yaml.safe_load(text))


def test_customers_words_are_kept_and_facts_become_checks() -> None:
    made = draft(RETURNS, "datasets/shop")
    assert (made.scenario, made.left_out) == ("chat-42", "")
    assert made.text.startswith("# From a held-back conversation of datasets/shop")
    scenario = read(made.text)
    assert [t.user for t in scenario.turns] == [m.content for m in RETURNS.messages if m.role == "user"]
    assert (scenario.kind, scenario.memory.facts) == ("memory", ("The customer is Ana.",))
    assert scenario.source == {"type": "transcript", "dataset": "shop", "conversation": "Chat/42", "split": "test"}
    first = {c.type: c for c in scenario.turns[0].checks}
    assert first["number"].gate == "hard"
    assert first["contains_any"].scorer.value == ("a-7712",)
    assert (first["contains_any"].gate, first["semantic"].gate) == ("soft", "soft")
    assert handover_expected(scenario) == "must_not"


async def test_the_real_answers_pass_and_a_wrong_period_does_not() -> None:
    scenario = read(draft(RETURNS, "datasets/shop").text)

    async def verdict(*replies: str) -> bool | None:
        exchanges = tuple(
            Exchange(i, scenario.turns[i].user, Reply(text, finish_reason="stop", total_ms=9))
            for i, text in enumerate(replies)
        )
        transcript = Transcript(Unit("candidate", scenario.id, 0, 0), 1, "", (), exchanges)
        return (await score_trial(scenario, transcript, Scoring())).passed

    real = [m.content for m in RETURNS.messages if m.role == "assistant"]
    assert await verdict(*real) is True
    assert await verdict("You have 14 days for A-7712.", real[1]) is False
    assert await verdict("You have fourteen days for A-7712.", real[1]) is False
    assert await verdict("You can return it.", "Soon.") is True, "what is not told is no mistake"


def test_a_handover_is_asked_for_and_ends_the_scenario() -> None:
    handed = talk(
        "This is a complaint!", "I am sorry.", "I want a person.", "A colleague takes over.", "Hello?", "Hi, Bob here.",
        handover_index=3, handover_reason="complaint\nand more",
    )  # fmt: skip
    made = draft(handed, "datasets/shop")
    scenario = read(made.text)
    assert "# A person had to take over: complaint and more" in made.text
    assert [t.user for t in scenario.turns] == ["This is a complaint!", "I want a person."]
    assert (scenario.kind, scenario.outcomes) == ("handoff", ("handoff",))
    assert not scenario.turns[1].checks
    assert "handover comes after" in draft(handed, "datasets/shop", max_turns=1).left_out


def test_several_messages_in_a_row_are_one_turn_and_long_conversations_are_cut() -> None:
    messages = (Message("user", "Hi"), Message("user", "anybody?"), Message("assistant", "Yes."))
    made = draft(Conversation("c", messages * 4, language="en"), "datasets/shop", max_turns=2)
    assert [t.user for t in read(made.text).turns] == ["Hi\nanybody?"] * 2
    assert "Cut after 2 of 4 customer turns." in made.text


@pytest.mark.parametrize(
    ("conversation", "why"),
    [
        (Conversation("c", (Message("assistant", "Hello?"),)), "no agent turn"),
        (talk("x" * 30_000, "ok"), "longer than"),
    ],
)
def test_what_makes_no_scenario_is_left_out_and_said_why(conversation: Conversation, why: str) -> None:
    made = draft(conversation, "datasets/shop")
    assert why in made.left_out
    assert not made.text


class Source:
    """Ten conversations."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def test_conversations(self, dataset: str) -> AsyncIterator[Conversation]:
        for i in range(self.count):
            yield Conversation(f"c{i}", RETURNS.messages, language="en")


async def test_the_draw_is_seeded_and_an_empty_test_split_is_refused() -> None:
    async def drawn(seed: int) -> list[str]:
        return [d.item async for d in draft_scenarios(Source(10), "datasets/shop", most=4, seed=seed)]

    assert await drawn(1) == await drawn(1)
    assert len({tuple(await drawn(seed)) for seed in range(5)}) > 1
    with pytest.raises(FailedPrecondition, match="test_fraction"):
        [d async for d in draft_scenarios(Source(0), "datasets/shop")]
    with pytest.raises(InvalidArgument):
        [d async for d in draft_scenarios(Source(1), "datasets/shop", max_turns=0)]
