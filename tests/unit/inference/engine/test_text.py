"""Characters over token boundaries, stop strings over token boundaries, constraints."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from chatmill.errors import InvalidArgument
from inference_svc.engines.rows.constraint import ConstraintCompiler
from inference_svc.engines.rows.detokenize import ByteStream, DecoderStream, StopFinder, TextTable
from inference_svc.generation import Constraint, ConstraintKind, FinishReason, Sampling

from . import tiny

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose decoder is no byte table: words begin with a mark that becomes a space."""
    bpe = Tokenizer(models.BPE(unk_token="?", byte_fallback=True))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    bpe.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = [f"<0x{n:02X}>" for n in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=["?", "<pad>"], initial_alphabet=["▁"])
    bpe.train_from_iterator(tiny.TEXTS * 4, trainer)
    bpe.add_tokens(pieces)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", unk_token="?")


@given(TEXT)
def test_pieces_of_any_text_join_to_the_text(text: str) -> None:
    table = TextTable(tiny.tokenizer())
    stream = table.stream()
    assert isinstance(stream, ByteStream)
    ids = tiny.tokenizer().encode(text, add_special_tokens=False, split_special_tokens=True)
    assert "".join(map(stream.push, ids)) + stream.close() == text


@settings(max_examples=200)
@given(st.lists(st.integers(0, tiny.VOCABULARY - 1), max_size=30))
def test_pieces_of_any_tokens_join_to_what_the_tokenizer_decodes(ids: list[int]) -> None:
    """Also tokens that no text makes, such as the end of one character before the beginning of another."""
    table = TextTable(tiny.tokenizer())
    stream = table.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.close() == tiny.tokenizer().decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("text", [*tiny.TEXTS, "a  b   c", "x\ny"])
def test_other_decoders_are_asked(text: str) -> None:
    tokenizer = metaspace_tokenizer()
    stream = TextTable(tokenizer).stream()
    assert isinstance(stream, DecoderStream)
    ids = tokenizer.encode(text, add_special_tokens=False)
    joined = "".join(map(stream.push, ids)) + stream.close()
    assert joined == tokenizer.decode(ids, skip_special_tokens=True)


def test_no_half_characters() -> None:
    stream = TextTable(tiny.tokenizer()).stream()
    for token in tiny.tokenizer().encode("🙂👍🏽您好", add_special_tokens=False):
        assert "\ufffd" not in stream.push(token)


@settings(max_examples=300)
@given(
    st.text(alphabet="ab<>\n", max_size=30),
    st.lists(st.text(alphabet="ab<>\n", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_stop_sequences_are_found_however_the_text_is_cut(text, stops, include, chance) -> None:
    finder = StopFinder(stops, include=include)
    got, match, at = "", "", 0
    while at < len(text) and not match:
        size = chance.randint(1, 4)
        piece, match = finder.push(text[at : at + size])
        got += piece
        at += size
    if not match:
        got += finder.close()
    found = [(text.index(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        assert (got, match) == (text, "")
        return
    # Cut finely, the match that is complete first wins; it is never one that ends after another's end.
    assert match in stops
    start = len(got) - len(match) if include else len(got)
    assert text[start : start + len(match)] == match
    assert start + len(match) <= min(begin - length for begin, length, _ in found) + 3


def test_a_stop_string_ends_the_output_and_is_not_in_it() -> None:
    base = tiny.loaded()
    bench = tiny.Bench(base)
    prompt = [30, 40, 50]
    bench.add("whole", prompt, Sampling(temperature=0, max_output_tokens=40, ignore_eos=True))
    bench.run()
    text = bench.text("whole")
    for number, (start, length) in enumerate([(5, 3), (9, 1), (12, 6), (0, 2)]):
        stop = text[start : start + length]
        for include in (False, True):
            name = f"{number} {include}"
            bench.add(
                name,
                prompt,
                Sampling(
                    temperature=0, max_output_tokens=40, ignore_eos=True, stop_sequences=(stop,), include_stop=include
                ),
            )
            bench.run()
            end = bench.end(name)
            assert end.finish_reason is FinishReason.STOP_SEQUENCE
            assert end.matched_stop == stop
            first = text.index(stop)
            assert bench.text(name) == text[: first + len(stop) * include]


def test_text_held_back_for_a_stop_comes_when_it_was_none() -> None:
    bench = tiny.Bench(tiny.loaded())
    prompt = [30, 40, 50]
    bench.add("plain", prompt, Sampling(temperature=0, max_output_tokens=20, ignore_eos=True))
    bench.run()
    text = bench.text("plain")
    stop = text[-1] + "\u0001 never"
    bench.add("held", prompt, Sampling(temperature=0, max_output_tokens=20, ignore_eos=True, stop_sequences=(stop,)))
    bench.run()
    assert bench.text("held") == text
    assert bench.end("held").finish_reason is FinishReason.MAX_TOKENS


SCHEMA = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["transfer_to_human"]}, "urgent": {"type": "boolean"}},
        "required": ["name", "urgent"],
        "additionalProperties": False,
    }
)
FORMS = {
    "schema": (Constraint(ConstraintKind.JSON_SCHEMA, SCHEMA), lambda t: json.loads(t)["name"] == "transfer_to_human"),
    "regex": (Constraint(ConstraintKind.REGEX, "[0-9]{3}-[a-f]{2}"), re.compile("[0-9]{3}-[a-f]{2}").fullmatch),
    "choices": (Constraint(ConstraintKind.CHOICES, choices=("yes", "no", '"是"')), {"yes", "no", '"是"'}.__contains__),
    "grammar": (Constraint(ConstraintKind.GRAMMAR, 'start: "a" "b"+ "."'), re.compile("ab+[.]").fullmatch),
}


def compiler() -> ConstraintCompiler:
    return ConstraintCompiler(tiny.tokenizer(), tiny.VOCABULARY, (2,))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("form", FORMS)
def test_output_has_the_form_and_neighbours_do_not_notice(form: str, temperature: float) -> None:
    constraint, fits = FORMS[form]
    base = tiny.loaded()
    bench = tiny.Bench(base)
    neighbour = [60, 61, 62]
    bench.add("neighbour", neighbour, Sampling(temperature=0, max_output_tokens=30, ignore_eos=True))
    made = compiler()
    for seed in range(4):
        ready = made.compile(constraint)
        row = bench.add(
            str(seed),
            [30 + seed, 40],
            Sampling(temperature=temperature, seed=seed, max_output_tokens=200),
            constraint=ready,
        )
        row.sampling.allowed = ready.allowed()
    bench.run()
    for seed in range(4):
        assert bench.end(str(seed)).finish_reason is FinishReason.END_OF_TURN
        assert fits(bench.text(str(seed))), bench.text(str(seed))
    assert bench.ids("neighbour") == tiny.generate(base.model, neighbour, 30, ignore_eos=True)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (ConstraintKind.JSON_SCHEMA, '{"type": "nonsense"}'),
        (ConstraintKind.REGEX, "(unclosed"),
        (ConstraintKind.GRAMMAR, "start: missing_rule"),
    ],
)
def test_a_broken_constraint_names_the_field(kind, value) -> None:
    with pytest.raises(InvalidArgument) as raised:
        compiler().compile(Constraint(kind, value))
    assert raised.value.violations[0].field == f"constraint.{kind.value}"


def test_thousands_of_pieces_stay_quick() -> None:
    """Held-back text is bounded by the longest stop sequence, so a long output costs the same per piece."""
    chance = random.Random(0)
    finder = StopFinder(["x" * 1000 + str(n) for n in range(64)])
    total = sum(len(finder.push(chance.choice(["x", "xx", "y"]))[0]) for _ in range(3000))
    assert total > 2000
