"""The loss sees what the assistant says, to the token, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import FailedPrecondition, InvalidArgument
from factory_svc.tokenization import IGNORED, mask_encoder, tokenize

from .conftest import conversations

OPTIONS: dict[str, Any] = {"max_length": 256, "over_length": "truncate", "loss_on": "assistant"}
NO_MARKERS = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(base: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def _learned(tokenizer: Any, rows: Any, index: int = 0) -> str:
    kept = [t for t, label in zip(rows.input_ids[index], rows.labels[index], strict=True) if label != IGNORED]
    return str(tokenizer.decode(kept))


def test_exactly_the_assistants_words_and_the_end_of_its_turn_are_learned(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "Hi there."},
        {"role": "tool", "content": "order 12: shipped"},
        {"role": "user", "content": "and?"},
        {"role": "assistant", "content": "Shipped."},
    ]
    rows = tokenize(tokenizer, [messages], **OPTIONS)
    assert rows.mask_source == "template"
    assert _learned(tokenizer, rows) == "Hi there.<|end|>Shipped.<|end|>"
    assert all(label in (IGNORED, token) for token, label in zip(rows.input_ids[0], rows.labels[0], strict=True))
    counted = rows.counters
    assert counted.tokens == len(rows.input_ids[0])
    assert counted.target_tokens + counted.masked_tokens == counted.tokens


@settings(max_examples=40, deadline=None)
@given(
    said=st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=20), min_size=2, max_size=6)
)
def test_whatever_is_said_the_mask_holds_only_the_assistants_turns(tokenizer: Any, said: list[str]) -> None:
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]
    rows = tokenize(tokenizer, [messages], **OPTIONS | {"max_length": 4096})
    expected = "".join(f"{m['content']}<|end|>" for m in messages if m["role"] == "assistant")
    assert _learned(tokenizer, rows) == expected


def test_a_template_without_markers_is_masked_turn_by_turn(base: Path) -> None:
    tokenizer = _with_template(base, NO_MARKERS)
    rows = tokenize(tokenizer, conversations(3), **OPTIONS)
    assert rows.mask_source == "turns"
    assert _learned(tokenizer, rows, 1) == "Order " + conversations(3)[1][2]["content"].removeprefix("Order ") + "[/]"


def test_turns_of_tools_are_left_out_of_templates_without_them(base: Path, tokenizer: Any) -> None:
    messages = [
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": "Let me look."},
        {"role": "tool", "content": "golf club"},
        {"role": "assistant", "content": "Here."},
    ]
    assert tokenize(tokenizer, [messages], **OPTIONS).counters.tool_messages_skipped == 0
    for template in (
        NO_MARKERS.replace("%}[{{", "%}{% if m['role'] == 'tool' %}{{ raise_exception('no') }}{% endif %}[{{"),
        NO_MARKERS.replace("{{ m['content'] }}", "{{ '' if m['role'] == 'tool' else m['content'] }}"),
    ):
        rows = tokenize(_with_template(base, template), [messages], **OPTIONS)
        assert rows.counters.tool_messages_skipped == 1
        assert _learned(_with_template(base, template), rows) == "Let me look.[/]Here.[/]"


def test_a_template_that_trl_knows_is_patched(base: Path) -> None:
    from trl.chat_template_utils import qwen2_5_chat_template

    tokenizer = _with_template(base, qwen2_5_chat_template)
    rows = tokenize(tokenizer, conversations(3), **OPTIONS)
    assert rows.mask_source == "trl"
    assert "Order" in _learned(tokenizer, rows, 1)
    assert "Where is" not in _learned(tokenizer, rows, 1)


def test_a_template_that_hides_its_turns_is_refused(base: Path) -> None:
    merged = "{% for m in messages | reverse %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(FailedPrecondition, match="can't be limited to the assistant"):
        mask_encoder(_with_template(base, merged))


def test_markers_around_the_wrong_turn_are_not_believed(base: Path) -> None:
    wrong = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}|{% endfor %}"
    )
    _, source = mask_encoder(_with_template(base, wrong))
    assert source == "turns"


def test_without_a_template_there_is_no_training(base: Path) -> None:
    with pytest.raises(FailedPrecondition, match="no chat template"):
        tokenize(_with_template(base, None), conversations(3), **OPTIONS)


def test_long_conversations_are_cut_dropped_or_refused_and_counted(tokenizer: Any) -> None:
    longer = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "word " * 300}]
    data = [*conversations(3), longer]
    whole = tokenize(tokenizer, [longer], **OPTIONS | {"max_length": 4096}).counters.tokens

    cut = tokenize(tokenizer, data, **OPTIONS)
    assert cut.counters.truncated == 1
    assert cut.counters.tokens_cut == whole - 256
    assert max(map(len, cut.input_ids)) == 256

    dropped = tokenize(tokenizer, data, **OPTIONS | {"over_length": "drop"})
    assert (dropped.counters.dropped_over_length, dropped.counters.examples_trained) == (1, 3)

    with pytest.raises(InvalidArgument, match=r"Conversation 3 has \d+ tokens"):
        tokenize(tokenizer, data, **OPTIONS | {"over_length": "refuse"})


def test_a_prompt_that_fills_the_room_leaves_nothing_to_learn(tokenizer: Any) -> None:
    blind = [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "ok"}]
    rows = tokenize(tokenizer, [*conversations(2), blind], **OPTIONS)
    assert rows.counters.dropped_no_target == 1
    with pytest.raises(InvalidArgument, match="Nothing is left to train on: of 1 conversations"):
        tokenize(tokenizer, [blind], **OPTIONS)


def test_loss_on_all_sees_every_token(tokenizer: Any) -> None:
    rows = tokenize(tokenizer, conversations(3), **OPTIONS | {"loss_on": "all"})
    assert rows.labels == rows.input_ids
    assert rows.counters.masked_tokens == 0


def _with_template(base: Path, template: str | None) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = template
    return tokenizer


def test_many_conversations_are_encoded_by_other_processes_to_the_same_rows(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = conversations(300)
    here = tokenize(tokenizer, many, **OPTIONS)
    monkeypatch.setattr("factory_svc.tokenization._WORTH_PROCESSES", 100)
    there = tokenize(tokenizer, many, **OPTIONS)
    assert (there.input_ids, there.labels, there.counters) == (here.input_ids, here.labels, here.counters)
