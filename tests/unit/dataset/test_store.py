"""Datasets on disk: complete or absent, found again, split and counted."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatmill.errors import Aborted, Cancelled, FailedPrecondition, NotFound
from dataset_svc import build, rows, split, statistics, store
from dataset_svc.build import Progress
from dataset_svc.catalog import Catalog, CreateRequest, Selection
from dataset_svc.classes import DATASET_CLASSES
from dataset_svc.conversation import Conversation, Message, ToolCall
from dataset_svc.dataset import Item
from dataset_svc.facts import Fact
from dataset_svc.handover import Handover

from .conftest import Make


def log(path: Path, count: int, *, language: str = "en", start: int = 0) -> Path:
    rng = random.Random(start)
    lines = []
    for i in range(start, start + count):
        said = " ".join(rng.choices(["where", "is", "my", "blue", "kettle", "today", "please"], k=8)) + chr(97 + i % 26)
        messages = [{"role": "customer", "content": said}, {"role": "agent", "content": f"Soon {said[::-1]}"}]
        lines.append(json.dumps({"id": f"c{i}", "messages": messages, "language": language}))
    path.write_text("\n".join(lines))
    return path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.text(),
    tool_calls=st.lists(
        st.builds(ToolCall, st.text(min_size=1), st.dictionaries(st.text(), JSON, max_size=2), st.text()), max_size=2
    ).map(tuple),
    name=st.none() | st.text(min_size=1),
    by_person=st.booleans(),
    origin=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    call_id=st.text(),
    data=JSON,
)
ITEM = st.builds(
    Item,
    conversation=st.builds(
        Conversation,
        id=st.text(min_size=1),
        messages=st.lists(MESSAGE, max_size=4).map(tuple),
        source_id=st.text(),
        place=st.text(),
        source_length=st.integers(0, 9),
        context=st.dictionaries(st.text(), JSON, max_size=3),
        annotations=st.dictionaries(st.text(), JSON, max_size=3),
    ),
    label=st.none() | st.text(),
    handover=st.none() | st.builds(Handover, st.integers(0, 9), st.text()),
    facts=st.lists(st.builds(Fact, st.text(), st.integers(0, 5)), max_size=3).map(tuple),
    language=st.text(),
    split=st.sampled_from(split.SPLITS),
)


@settings(deadline=None, max_examples=100, derandomize=True)
@given(ITEM)
def test_an_item_comes_back_as_it_was(item: Item) -> None:
    line = rows.line(*rows.encode(item))
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert rows.decode(line) == item


def test_digest_and_split_depend_on_content_alone(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    first = make(log(tmp_path / "a", 100), dataset_id="a").manifest
    (tmp_path / "sub").mkdir()
    moved = (tmp_path / "a").rename(tmp_path / "sub" / "b.jsonl")
    second = make(moved, dataset_id="b").manifest
    assert second.digest == first.digest
    assert second.sources[0].sha256 == first.source_sha256
    other_seed = make(moved, dataset_id="c", split_seed=1).manifest
    assert other_seed.digest != first.digest
    assert [i.split for i in catalog.open("c")] != [i.split for i in catalog.open("a")]
    assert [i.split for i in catalog.open("b")] == [i.split for i in catalog.open("a")]


def test_adding_conversations_moves_none_across_the_split(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(log(tmp_path / "a", 200), dataset_id="a")
    make(log(tmp_path / "b", 50, start=500), tmp_path / "a", dataset_id="b")
    before = {i.conversation.source_id: i.split for i in catalog.open("a")}
    after = {i.conversation.source_id: i.split for i in catalog.open("b")}
    assert len(after) > len(before)
    assert {k: after[k] for k in before} == before


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.9])
def test_the_split_keeps_its_fraction(fraction: float) -> None:
    chosen = [split.choose(f"id-{i}", seed=3, test_fraction=fraction) for i in range(5000)]
    assert chosen.count("test") / 5000 == pytest.approx(fraction, abs=0.02)


def test_near_duplicates_share_a_side(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    lines = [
        {
            "id": f"o{i}-{v}",
            "messages": [
                {"role": "customer", "content": f"Order {v}{v}: {chr(97 + i) * 9}?"},
                {"role": "agent", "content": "Sent!"},
            ],
        }
        for i in range(26)
        for v in range(3)
    ]
    path = tmp_path / "log"
    path.write_text("\n".join(map(json.dumps, lines)))
    made = make(path, test_fraction=0.5)
    assert made.manifest.near_duplicates == 52
    sides: dict[str, set[str]] = {}
    for item in catalog.open("d"):
        sides.setdefault(item.conversation.source_id.split("-")[0], set()).add(item.split)
    assert len(sides) == 26
    assert all(len(side) == 1 for side in sides.values())
    assert {s for side in sides.values() for s in side} == {"train", "test"}


def test_equal_ids_are_told_apart(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    lines = [
        {"id": "X 1", "messages": [{"role": "customer", "content": "ab"[i] * 3}, {"role": "agent", "content": "b"}]}
        for i in range(2)
    ]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, lines)))
    made = make(tmp_path / "log").manifest
    assert [i.id for i in catalog.open("d")] == ["x-1", "x-1-2"]
    assert [step for step, _ in made.cleaning.changed] == ["ids"]
    assert catalog.item("d", "x-1-2")[0] == 1


def test_selections(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(log(tmp_path / "a", 30), log(tmp_path / "b", 20, language="zh-CN", start=100))
    assert [i for i, _ in catalog.select(Selection("d", languages=("zh",)))] == list(range(30, 50))
    assert [i for i, _ in catalog.select(Selection("d", languages=("z",)))] == []
    both = [i for s in ("train", "test") for i, _ in catalog.select(Selection("d", split=s))]
    assert sorted(both) == list(range(50))
    assert [i for i, _ in catalog.select(Selection("d", start_index=45, limit=3))] == [45, 46, 47]
    assert list(catalog.select(Selection("d", start_index=99))) == []


def test_limit_reads_no_further(tmp_path: Path, make: Make) -> None:
    path = log(tmp_path / "a", 10)
    path.write_text(path.read_text() + "\nnot json at all")
    assert make(path, limit=10).manifest.rows == 10


def test_several_shards(tmp_path: Path, make: Make, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "SHARD_BYTES", 2000)
    made = make(log(tmp_path / "a", 50)).manifest
    assert len(made.shards) > 5
    assert [i.conversation.source_id for i in catalog.open("d")] == [f"c{i}" for i in range(50)]


def test_a_reader_goes_on_when_its_dataset_is_replaced_or_deleted(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(log(tmp_path / "a", 20))
    opened = catalog.open("d")
    pickled = pickle.dumps(opened)
    make(log(tmp_path / "b", 5, start=100), replace=True)
    assert opened[19].conversation.source_id == "c19"
    assert len(catalog.open("d")) == 5
    with pytest.raises(FailedPrecondition, match="was replaced"):
        pickle.loads(pickled)
    catalog.delete("d")
    assert opened[0].conversation.source_id == "c0"
    with pytest.raises(NotFound, match="lists what there is"):
        catalog.open("d")


def test_what_a_crash_leaves_is_cleared_and_what_is_being_written_is_not(tmp_path: Path, make: Make) -> None:
    make(log(tmp_path / "a", 3), dataset_id="kept")
    folder = tmp_path / "home" / "datasets"
    for name in (".creating-x.1", ".deleted-y.2", ".replaced-kept.3", ".creating-busy.4"):
        (folder / name).mkdir()
        (folder / name / "lock").touch()
    (folder / "kept").rename(folder / ".replaced-lost.5")  # a crash between the two renames of a replacement
    with (folder / ".creating-busy.4" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        again = Catalog(tmp_path / "home", [tmp_path], DATASET_CLASSES)
        assert sorted(os.listdir(folder)) == [".creating-busy.4", "kept", "lost"]
    assert ".creating-x.1" in again.swept
    assert len(again.open("lost")) == 3


@pytest.mark.parametrize("after", [0, 1, 30, 61])
def test_a_cancel_at_any_point_leaves_nothing(tmp_path: Path, catalog: Catalog, after: int) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            raise Cancelled("enough")

    request = CreateRequest("d", [str(log(tmp_path / "a", 60))])
    with pytest.raises(Cancelled):
        catalog.create(request, lambda _: None, check)
    folder = tmp_path / "home" / "datasets"
    assert not folder.exists() or not list(folder.iterdir())
    assert catalog.create(request, lambda _: None, lambda: None).manifest.rows == 60


def test_a_source_that_changes_meanwhile_is_not_taken(tmp_path: Path, catalog: Catalog) -> None:
    path = log(tmp_path / "a", 60)
    grown = False

    def report(progress: Progress) -> None:
        nonlocal grown
        if progress.phase == "reading" and not grown:
            grown = True
            with path.open("a") as more:
                more.write("\n")

    request = CreateRequest("d", [str(path)])
    with pytest.raises(Aborted, match="changed while it was being read"):
        catalog.create(request, report, lambda: None)
    assert not list((tmp_path / "home" / "datasets").iterdir())
    assert not catalog.create(request, report, lambda: None).unchanged


def test_one_damaged_dataset_does_not_hide_the_others(
    tmp_path: Path, make: Make, catalog: Catalog, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a", "b"):
        make(log(tmp_path / "log", 3), dataset_id=name)
    (tmp_path / "home" / "datasets" / "a" / "manifest.json").write_text("{")
    assert [about.id for about in catalog.listed("", 10)] == ["b"]
    assert "datasets/a/manifest.json is damaged" in caplog.text
    catalog.delete("a")
    assert make(tmp_path / "log", dataset_id="a").manifest.rows == 3


@pytest.mark.parametrize("damage", ["manifest", "index", "shard", "cut shard", "newer"])
def test_damage_is_named(tmp_path: Path, make: Make, catalog: Catalog, damage: str) -> None:
    make(log(tmp_path / "a", 3))
    folder = tmp_path / "home" / "datasets" / "d"
    if damage == "manifest":
        (folder / "manifest.json").write_text("{")
    elif damage == "newer":
        (folder / "manifest.json").write_text('{"schema": 99}')
    elif damage == "index":
        (folder / "index.bin").unlink()
    elif damage == "shard":
        (folder / "items-00000.jsonl").unlink()
    else:
        os.truncate(folder / "items-00000.jsonl", 10)
    with pytest.raises(FailedPrecondition) as caught:
        _ = catalog.item("d", 2)
    assert caught.value.reason == "DATASET_DAMAGED"
    assert "create" in caught.value.message


def test_statistics_are_exact(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    def line(*said: str, **more: Any) -> dict[str, Any]:
        roles = {"c": "customer", "a": "agent", "t": "action"}
        return {"messages": [{"role": roles[s[0]], "content": s[1:]} for s in said], **more}

    lines = [
        line("cab", "axyz", label="x"),
        line("cq", "ar", "t.", "as", label="x", language="zh"),
        line("aHello", "cWell", "c", "a..", "cEnd", annotations={"handover": {"index": 3, "reason": "legal"}}),
    ]
    (tmp_path / "log").write_text("\n".join(map(json.dumps, lines)))
    make(tmp_path / "log", test_fraction=0)
    _, found = catalog.statistics("d")
    assert found.items == 3
    assert found.turns == statistics.Distribution(3, 3.0, 2, 3, 4, 4)
    assert found.characters.user == statistics.Distribution(4, 2.5, 1, 2, 4, 4)
    assert found.characters.conversation.max == 14
    assert (found.labels, found.languages["zh"]) == ({"x": 2, "": 1}, 1)
    assert (found.handovers, found.handover_reasons) == (1, {"legal": 1})
    assert found.handover_position.p50 == pytest.approx(0.667, abs=0.001)
    assert found.role_problems == {"assistant twice in a row": 1, "begins with assistant": 1, "ends on user": 1}
    assert (found.not_alternating, found.ending_on_user, found.empty_messages) == (1, 1, 1)
    assert found.splits == {"train": 3}
    assert found.tokens is None
    assert statistics.from_json(found.to_json()) == found


def test_many_labels_are_counted_together_beyond_a_bound() -> None:
    messages = (Message("user", "a"), Message("assistant", "b"))
    items = [
        Item(Conversation(str(i), messages), f"label {i}", None, (), "en", "train")
        for i in range(statistics.MAX_VALUES + 7)
    ]
    found = statistics.gather([*items, items[-1]])
    assert len(found.labels) == statistics.MAX_VALUES + 1
    assert next(iter(found.labels.items())) == (items[-1].label, 2)
    assert found.labels[statistics.OTHERS] == 7
    assert sum(found.labels.values()) == len(items) + 1


def test_tokens_are_counted_with_a_tokenizer(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    make(log(tmp_path / "a", 10))
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model" / "tokenizer.json"))
    _, found = catalog.statistics("d", str(tmp_path / "model"))
    assert found.tokens is not None
    assert (found.tokens.user.min, found.tokens.user.max) == (8, 8)
    assert found.tokens.conversation.p50 == 17
    assert found.tokens.longer_than["256"] == 0


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.integers(0, 500), min_size=1, max_size=60))
def test_percentiles_are_those_of_the_sorted_values(values: list[int]) -> None:
    from collections import Counter

    found = statistics.distribution(Counter(values))
    ordered = sorted(values)
    assert found.p50 == ordered[-(-len(values) * 50 // 100) - 1]
    assert found.p95 == ordered[-(-len(values) * 95 // 100) - 1]
    assert (found.min, found.max, found.count) == (ordered[0], ordered[-1], len(values))
    assert found.mean == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize(
    ("file", "rows", "turns", "language"),
    [
        ("star/en_star_dev.jsonl.gz", 2000, (19.3, 18, 38, 54), "en"),
        ("multiwoz/en_multiwoz_dev.jsonl.gz", 500, (14.6, 14, 22, 34), "en"),
        ("zh/zh_crosswoz_dev.jsonl.gz", 700, (16.9, 16, 28, 46), "zh"),
        ("zh/zh_multiwoz_human_dev.jsonl.gz", 250, (14.6, 14, 22, 34), "zh"),
        ("raw_multiwoz/multiwoz21_300.json.gz", 300, None, "en"),
    ],
)
def test_public_conversations_become_datasets(
    shared: Path, make: Make, catalog: Catalog, file: str, rows: int, turns: tuple[float, ...] | None, language: str
) -> None:
    made = make(shared / file).manifest
    assert made.rows == rows == sum(made.splits.values())
    assert 0.05 * rows < made.splits["test"] < 0.15 * rows
    assert made.languages == (language,)
    assert not made.cleaning.dropped
    if turns:  # as the data's own README counts them
        found = catalog.statistics("d")[1].turns
        assert (round(found.mean, 1), found.p50, found.p95, found.max) == turns


def test_progress_runs_over_all_sources_to_the_end(
    tmp_path: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "_PROGRESS_SECONDS", 0)
    first, second = log(tmp_path / "a", 30), log(tmp_path / "b", 30, start=100)
    seen: list[Progress] = []
    request = CreateRequest("d", [str(first), str(second)])
    catalog.create(request, seen.append, lambda: None)
    total = first.stat().st_size + second.stat().st_size
    reading = [p for p in seen if p.phase == "reading"]
    assert [p.read for p in reading] == list(range(1, 61))
    assert [p.bytes_read for p in reading] == sorted(p.bytes_read for p in reading)
    assert reading[-1].bytes_read == reading[-1].bytes_total == total
    assert (seen[-1].phase, seen[-1].kept) == ("writing", 60)
