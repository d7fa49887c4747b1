"""The conversations of the made-up client: reproducible, enough of them, in the neutral shape, apart from the suite."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from eval_svc.suite import Suite, read_suite
from samples.base.build import SHIPPED, corpus, corpus_digest
from samples.base.corpus import conversations as corpus_conversations
from samples.make import COUNTS, conversations, packed, path
from samples.overlap import SUITES, asked_in, bare

SAMPLES = Path(__file__).parents[3] / "samples"
HANDOVERS = {"complaint", "legal", "injury", "request", "fraud", "safety"}


@pytest.fixture(scope="module")
def data() -> dict[str, list[dict[str, Any]]]:
    return {
        language: [json.loads(line) for line in gzip.open(path(language), "rt", encoding="utf-8")]
        for language in COUNTS
    }


@pytest.fixture(scope="module", params=["suite", "suite-dev"])
def suite(request: pytest.FixtureRequest) -> Suite:
    return read_suite(SAMPLES / request.param)


@pytest.mark.parametrize("language", sorted(COUNTS))
def test_the_script_writes_exactly_what_is_committed(language: str) -> None:
    assert packed(language) == path(language).read_bytes(), "run `python -m samples.make` and commit samples/data"


def test_another_seed_gives_other_conversations() -> None:
    assert list(conversations("en", 3, seed=1)) != list(conversations("en", 3, seed=2))


def test_there_is_enough_in_both_languages(data: dict[str, list[dict[str, Any]]]) -> None:
    assert len(data["en"]) >= 1500
    assert len(data["zh"]) >= 300
    for language, found in data.items():
        assert {c["annotations"]["language"] for c in found} == {language}
        assert len({c["id"] for c in found}) == len(found)


def test_all_that_a_shop_meets_occurs(data: dict[str, list[dict[str, Any]]]) -> None:
    for language, found in data.items():
        acts = {act for c in found for act in c["annotations"]["acts"]}
        assert {"who", "privacy", "offtopic", "bargain", "extract", "returns", "status", "back", *HANDOVERS} <= acts, (
            language
        )
        assert any(c["context"].get("sessions") for c in found), "returning customers with an earlier visit"
        burst = [
            c
            for c in found
            for a, b in zip(c["messages"], c["messages"][1:], strict=False)
            if a["role"] == b["role"] == "customer"
        ]
        assert burst, "customers who send two messages in a row"


def test_a_handover_is_an_agents_message_and_then_the_call(data: dict[str, list[dict[str, Any]]]) -> None:
    handed_over = [c for found in data.values() for c in found if "handover" in c["annotations"]]
    assert {c["annotations"]["handover"]["reason"] for c in handed_over} == HANDOVERS
    for conversation in handed_over:
        mark = conversation["annotations"]["handover"]
        said, call = conversation["messages"][mark["index"] : mark["index"] + 2]
        assert said["role"] == "agent"
        assert (call["role"], call["name"], call["data"]) == ("action", "transfer_to_human", {"reason": mark["reason"]})


def said_by_customers(data: dict[str, list[dict[str, Any]]]) -> set[str]:
    lines = set()
    for conversation in (c for found in data.values() for c in found):
        burst: list[str] = []
        for message in [*conversation["messages"], {"role": "end", "content": ""}]:
            if message["role"] == "customer":
                burst.append(message["content"])
                lines.add(bare(message["content"]))
            elif burst:
                lines.add(bare("".join(burst)))
                burst = []
    return lines


def test_no_line_of_the_suite_occurs_in_training(data: dict[str, list[dict[str, Any]]], suite: Suite) -> None:
    known = said_by_customers(data)
    asked = {bare(wording): wording for s in suite.scenarios for t in s.turns for wording in (t.user, *t.variants)}
    assert len(known) > 3000
    assert [wording for key, wording in asked.items() if key in known] == []


def test_no_line_of_the_suite_occurs_in_the_base_corpus(suite: Suite) -> None:
    asked = {bare(wording) for s in suite.scenarios for t in s.turns for wording in (t.user, *t.variants)}
    corpus = corpus_conversations(3000, seed=7)
    assert not asked & {bare(m["content"]) for messages in corpus for m in messages if m["role"] == "user"}


@pytest.mark.slow
def test_no_line_of_the_suites_occurs_in_the_whole_base_corpus() -> None:
    recipe = yaml.safe_load((SHIPPED / "recipe.yaml").read_text(encoding="utf-8"))
    entry = yaml.safe_load((SHIPPED / "entry.yaml").read_text(encoding="utf-8"))
    written = set().union(*map(asked_in, SUITES))
    made = corpus(recipe["corpus"])
    assert len(made) == recipe["corpus"]["conversations"]
    assert not written & {bare(m["content"]) for messages in made for m in messages if m["role"] == "user"}
    assert corpus_digest(made) == entry["data"]["examples_digest"], "it is no longer the one it was made from"


def test_the_base_corpus_knows_nothing_of_the_shop() -> None:
    for messages in corpus_conversations(3000, seed=7):
        text = " ".join(m["content"] for m in messages)
        assert "Kettlemoor" not in text
        assert "Mila" not in text.split()


def test_the_comparison_sees_through_case_spaces_and_punctuation() -> None:
    assert bare("Who are  YOU?!") == bare("who are you") != bare("who is it")
    assert bare("你好，吗？") == bare("你好吗")
    assert bare("🎈🎈") != ""
