"""Each cleaning step, and what is said about it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import InvalidArgument
from dataset_svc import text
from dataset_svc.cleaning import Cleaning, Report
from dataset_svc.cleaning import over_long as bounds
from dataset_svc.conversation import TRANSFER_TO_HUMAN, Conversation, Message, Role, ToolCall

from .conftest import Make


def talk(*said: tuple[Role, str], **more: Any) -> Conversation:
    messages = tuple(Message(role, content, origin=(i,)) for i, (role, content) in enumerate(said))
    return Conversation("c", messages, place="log:1", source_length=len(messages), **more)


def outcome(*conversations: Conversation) -> tuple[list[Conversation], dict[str, int], dict[str, int]]:
    cleaning = Cleaning()
    kept = [c for c in map(cleaning, conversations) if c is not None]
    count = {
        kind: {step: t.count for (step, _), t in getattr(cleaning.report, kind).items()}
        for kind in ("dropped", "changed")
    }
    return kept, count["dropped"], count["changed"]


def test_a_clean_conversation_is_left_as_it_is() -> None:
    clean = talk(("user", "Hi\nthere"), ("tool", "x"), ("tool", "y"), ("assistant", "Hello\t!"))
    assert outcome(clean) == ([clean], {}, {})


def test_control_characters_go_and_line_breaks_are_one_kind() -> None:
    (kept,), _, changed = outcome(talk(("user", "a\x00b\r\nc\u2028d\ufeff\x7f"), ("assistant", "e\ud800")))
    assert [m.content for m in kept.messages] == ["ab\nc\nd", "e\ufffd"]
    assert changed == {"control_characters": 1}


def test_empty_messages_go_before_neighbours_are_merged() -> None:
    (kept,), _, changed = outcome(talk(("user", "a"), ("assistant", " \n"), ("user", "b "), ("assistant", "c")))
    assert [(m.role, m.content, m.origin) for m in kept.messages] == [
        ("user", "a\nb", (0, 2)),
        ("assistant", "c", (3,)),
    ]
    assert changed == {"empty": 1, "bursts": 1}
    assert [kept.index_of(i) for i in range(5)] == [0, 0, 0, 1, 2]


def test_a_call_ends_a_turn_and_what_follows_a_handover_is_a_persons() -> None:
    call = Message("assistant", "", (ToolCall(TRANSFER_TO_HUMAN, {"reason": "legal"}),), origin=(2,))
    start = talk(("user", "I sue you"), ("assistant", "I see."))
    after = (Message("assistant", "Ben here."), Message("assistant", "How can I help?"), Message("user", "Pay."))
    (kept,), _, _ = outcome(Conversation("c", (*start.messages, call, *after), source_length=6))
    assert [(m.role, m.content, m.by_person) for m in kept.messages] == [
        ("user", "I sue you", False),
        ("assistant", "I see.", False),
        ("assistant", "Ben here.\nHow can I help?", True),
        ("user", "Pay.", False),
    ]
    assert kept.messages[1].handover is not None


@pytest.mark.parametrize(
    ("conversation", "step"),
    [
        (talk(), "empty"),
        (talk(("user", " "), ("assistant", "\x00")), "empty"),
        (talk(("user", "a"), ("user", "b")), "no_assistant"),
        (talk(("assistant", "a")), "no_assistant"),
        (talk(("user", "a" * (bounds.MAX_CHARACTERS + 1)), ("assistant", "b")), "over_long"),
        (talk(*[("user", "a"), ("tool", "b"), ("assistant", "c")] * 400), "over_long"),
    ],
)
def test_what_teaches_nothing_is_dropped_by_name(conversation: Conversation, step: str) -> None:
    kept, dropped, _ = outcome(conversation)
    assert kept == []
    assert dropped == {step: 1}


def test_exact_duplicates_are_dropped_and_near_ones_are_not() -> None:
    first = talk(("user", "Order 12?"), ("assistant", "Sent."))
    same = talk(("user", " Order 12? "), ("assistant", "Sent."))
    near = talk(("user", "order 13"), ("assistant", "Sent!"))
    kept, dropped, _ = outcome(first, same, near)
    assert kept == [first, near]
    assert dropped == {"duplicates": 1}
    assert first.near_key() == near.near_key() != talk(("user", "Odor 12?"), ("assistant", "Sent.")).near_key()


def test_conversations_without_letters_are_not_all_near_duplicates() -> None:
    assert talk(("user", "1"), ("assistant", "2")).near_key() != talk(("user", "3"), ("assistant", "4")).near_key()


def test_the_report_survives_the_manifest() -> None:
    cleaning = Cleaning()
    for _ in range(5):
        cleaning(talk(("user", "a"), ("assistant", "b\x00")))
    report = cleaning.report
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
    (tally,) = report.dropped.values()
    assert (tally.count, tally.examples) == (4, ["log:1"] * 3)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(alphabet=st.characters()))
def test_clean_text_is_clean_and_stays_so(dirty: str) -> None:
    cleaned = text.clean(dirty)
    cleaned.encode()
    assert text.clean(cleaned) == cleaned
    assert not set(cleaned) & {chr(i) for i in range(32) if chr(i) not in "\n\t"}


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
def test_slugs_fit_a_resource_name(given_id: str) -> None:
    made = text.slug(given_id)
    assert 1 <= len(made) <= text.MAX_ID
    assert set(made) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert not made.startswith("-")
    assert text.slug(made) == made


def test_everything_dropped_says_why(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "log"
    path.write_text('{"messages": []}\n{"messages": [{"role": "customer", "content": "a"}]}\n')
    with pytest.raises(
        InvalidArgument, match=r"no conversation is left after cleaning: 1 by empty .*; 1 by no_assistant"
    ):
        make(path)


def test_a_message_after_a_tool_call_is_a_turn_of_its_own() -> None:
    looks_up = Message("assistant", "Let me look.", (ToolCall("find", {}),), origin=(1,))
    said = talk(("user", "a"))
    conversation = Conversation("c", (*said.messages, looks_up, Message("assistant", "Found it.", origin=(2,))))
    (kept,), _, changed = outcome(conversation)
    assert [m.content for m in kept.messages] == ["a", "Let me look.", "Found it."]
    assert changed == {}
