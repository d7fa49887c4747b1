"""From logs to what a model learns: handovers, trimming, tools and bursts."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from chatmill.prompts import system_message
from factory_svc.examples import ExampleCounters, Item, ToolCall, Turn, to_messages
from factory_svc.task import Messages

from .conftest import HANDOVER


def _made(item: Item, **options: object) -> tuple[Messages | None, ExampleCounters]:
    counters = ExampleCounters()
    return to_messages(item, "Be kind.", counters, **options), counters  # type: ignore[arg-type]


def _turns(*pairs: tuple[str, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role, content) for role, content in pairs)


def test_the_system_message_is_the_prompt_and_the_facts() -> None:
    messages, _ = _made(Item("i", _turns(("user", "hi"), ("assistant", "hello")), facts=("Ana.", "Order 3: late.")))
    assert messages == [
        {"role": "system", "content": "Be kind.\nAna. Order 3: late."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]
    assert system_message("", ()) == ""
    assert system_message("A", ()) == "A"


def test_a_handover_becomes_the_tool_call_and_ends_the_conversation() -> None:
    turns = _turns(
        ("user", "This is a scandal"), ("assistant", "I am sorry."), ("assistant", "Jo here, a person."), ("user", "ok")
    )
    messages, counters = _made(Item("i", turns, human_intervention_idx=1, human_intervention_reason="complaint"))
    assert messages is not None
    assert messages[-1] == {
        "role": "assistant",
        "content": f"I am sorry.\n{HANDOVER}",
    }
    assert [m["role"] for m in messages] == ["system", "user", "assistant"]
    assert counters.changed["handover became a tool call"] == 1


def test_a_handover_that_the_log_already_calls_is_not_called_twice() -> None:
    call = ToolCall("transfer_to_human", '{"reason": "x"}')
    turns = (Turn("user", "help"), Turn("assistant", "", (ToolCall("lookup", '{"id": 1}'), call)))
    messages, _ = _made(Item("i", turns, human_intervention_idx=1, human_intervention_reason="legal"))
    assert messages is not None
    assert messages[-1]["content"].count("transfer_to_human") == 1
    assert '"reason": "legal"' in messages[-1]["content"]
    assert '{"name": "lookup", "arguments": {"id": 1}}' in messages[-1]["content"]


def test_a_handover_marked_at_the_customers_turn_answers_it() -> None:
    turns = _turns(("user", "hi"), ("assistant", "hello"), ("user", "a person, now"), ("assistant", "no"))
    messages, _ = _made(Item("i", turns, human_intervention_idx=2, human_intervention_reason="request"))
    assert messages is not None
    assert messages[-2]["content"] == "a person, now"
    assert messages[-1]["content"].startswith("<tool_call>")


def test_what_follows_the_last_answer_is_cut_and_counted() -> None:
    messages, counters = _made(Item("i", _turns(("user", "hi"), ("assistant", "hello"), ("user", "bye"))))
    assert messages is not None
    assert messages[-1]["content"] == "hello"
    assert counters.changed["turns after the last assistant turn cut"] == 1


def test_a_conversation_without_an_answer_is_dropped_and_counted() -> None:
    for turns in (_turns(("user", "hi")), _turns(("assistant", "hello")), ()):
        messages, counters = _made(Item("i", turns))
        assert messages is None
        assert counters.dropped.total() == 1


def test_tool_messages_stay_as_context_or_are_skipped() -> None:
    turns = _turns(("user", "where?"), ("assistant", "Let me look."), ("tool", "shipped"), ("assistant", "Shipped."))
    kept, _ = _made(Item("i", turns))
    assert kept is not None
    assert [m["role"] for m in kept] == ["system", "user", "assistant", "tool", "assistant"]
    skipped, counters = _made(Item("i", turns), tool_messages="skip")
    assert skipped is not None
    assert skipped[-1]["content"] == "Let me look.\nShipped."
    assert counters.changed["tool messages skipped"] == 1


def test_arguments_that_are_no_json_are_kept_as_text() -> None:
    turns = (Turn("user", "x"), Turn("assistant", "", (ToolCall("look", "id=3"),)))
    messages, _ = _made(Item("i", turns))
    assert messages is not None
    assert messages[-1]["content"] == '<tool_call>{"name": "look", "arguments": {"text": "id=3"}}</tool_call>'


ROLES = st.sampled_from(["user", "assistant", "tool", "system"])


@given(
    turns=st.lists(st.tuples(ROLES, st.text(max_size=8)), max_size=12),
    handover=st.none() | st.integers(0, 11),
)
def test_every_example_begins_after_the_system_and_ends_on_the_assistant(
    turns: list[tuple[str, str]], handover: int | None
) -> None:
    at = handover if handover is None or handover < len(turns) else None
    messages, counters = _made(Item("i", _turns(*turns), human_intervention_idx=at))
    assert counters.read == 1
    assert counters.written + counters.dropped.total() == 1
    if messages is None:
        return
    assert messages[-1]["role"] == "assistant"
    assert [m["role"] for m in messages].count("system") == 1
    assert all(m["content"] for m in messages)
    assert all(a["role"] != b["role"] for a, b in itertools.pairwise(messages))
