"""The registry file is whole at every moment, whoever writes, and its versions never change."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from factory_svc.entry import (
    Artifact,
    Contract,
    DataRecord,
    Entry,
    Evaluation,
    ModelName,
    Source,
    TrainingRecord,
    from_yaml_data,
    to_yaml_data,
)
from factory_svc.model_files import list_artifacts
from factory_svc.registry import Registry


def _entry(model_id: str = "shop", **changes: Any) -> Entry:
    return Entry(**{"model_id": model_id, "version": 0, "kind": "prompt", "base": "models/b/versions/1", **changes})


FULL = Entry(
    model_id="shop",
    version=3,
    kind="adapter",
    base="models/tiny/versions/1",
    base_revision="abc",
    artifacts=(Artifact("shop/3/adapter_model.safetensors", "0" * 64, 12, "application/vnd.safetensors"),),
    conversation=Contract("d", ("<|end|>",), "Sei höflich. 你好", "e", ({"user": "u", "assistant": "a"},), 512),
    source=Source("hub", "Qwen/Qwen2.5-0.5B-Instruct", "f" * 40),
    data=DataRecord("datasets/shop", "x", dropped={"too long": 3}, languages=("en", "zh")),
    training=TrainingRecord(
        "trainingJobs/1",
        "lora",
        {"rank": 8, "double": False},
        7,
        final_loss=0.0,
        started=datetime(2026, 1, 2, tzinfo=UTC),
    ),
    evaluations=(Evaluation("evaluations/1", pass_rate=0.0, gate_passed=False),),
    labels={"team": "care"},
).with_revision()


def test_an_entry_is_the_same_after_yaml() -> None:
    text = yaml.safe_dump(to_yaml_data(FULL), allow_unicode=True, sort_keys=False)
    assert "你好" in text
    assert from_yaml_data("shop", 3, yaml.safe_load(text), "here") == FULL


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"kind": "prompt", "colour": "red"}, "here: unknown key 'colour'"),
        ({"kind": "horse"}, "here.kind: 'horse' is none of"),
        ({"kind": "prompt", "data": 3}, "here.data: expected keys"),
        ({}, "kind"),
    ],
)
def test_a_damaged_entry_names_the_place(data: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        from_yaml_data("shop", 1, data, "here")


def test_the_revision_is_of_what_decides_what_the_model_says() -> None:
    def revision(**changes: Any) -> str:
        return dataclasses.replace(FULL, **changes).with_revision().revision

    assert revision(description="new", labels={}, evaluations=(), model_id="other") == FULL.revision
    assert revision(base_revision="abd") != FULL.revision
    assert revision(conversation=dataclasses.replace(FULL.conversation, system_prompt="x")) != FULL.revision
    assert revision(artifacts=(dataclasses.replace(FULL.artifacts[0], sha256="1" * 64),)) != FULL.revision
    moved = dataclasses.replace(FULL.artifacts[0], path="elsewhere/9/adapter_model.safetensors")
    assert revision(artifacts=(moved,)) == FULL.revision


def test_versions_count_up_and_names_find_them(registry: Registry) -> None:
    first, second = registry.add(_entry()), registry.add(_entry())
    assert (first.version, second.version) == (1, 2)
    registry.set_alias(first.name, "production", reason="begin")
    assert registry.get("models/shop") == second
    assert registry.get("models/shop/versions/1") == first
    assert registry.get("models/shop/aliases/production") == first
    for name, hint in (
        ("models/shup", "did you mean 'shop'"),
        ("models/shop/versions/9", "newest is 2"),
        ("models/shop/aliases/producton", "did you mean 'production'"),
    ):
        with pytest.raises(NotFound, match=hint):
            registry.get(name)
    with pytest.raises(InvalidArgument, match="not a model name"):
        registry.get("shop")


def test_aliases_move_and_remember(registry: Registry) -> None:
    for _ in range(2):
        registry.add(_entry())
    assert registry.set_alias("models/shop/versions/1", "production")[1] == ""
    entry, previous = registry.set_alias("models/shop/versions/2", "production", reason="gate passed", who="ana")
    assert (entry.version, previous) == (2, "models/shop/versions/1")
    snapshot = registry.read()
    assert snapshot.aliases_of(entry) == ["production"]
    assert snapshot.aliases_of(registry.get("models/shop/versions/1")) == []
    moves = snapshot.aliases["shop"]["production"]
    assert [(m.old, m.new, m.reason, m.who) for m in moves] == [(None, 1, "", ""), (1, 2, "gate passed", "ana")]
    before = snapshot.revision
    registry.set_alias("models/shop/versions/2", "production")
    assert registry.read().revision == before, "a move to where it points is no change"


@pytest.mark.parametrize("alias", ["", "Production", "a b", "1st", "x" * 64, "end-", "../up"])
def test_an_alias_that_is_no_id_is_refused(registry: Registry, alias: str) -> None:
    registry.add(_entry())
    with pytest.raises(InvalidArgument):
        registry.set_alias("models/shop", alias)


def test_files_move_into_place_with_digests(registry: Registry, tmp_path: Path, base: Path) -> None:
    files = tmp_path / "made"
    files.mkdir()
    (files / "adapter_model.safetensors").write_bytes((base / "model.safetensors").read_bytes())
    (files / "adapter_config.json").write_text("{}")
    entry = registry.add(_entry(kind="adapter", artifacts=list_artifacts(files, ".")), files)
    assert not files.exists()
    assert {a.path for a in entry.artifacts} == {"shop/1/adapter_config.json", "shop/1/adapter_model.safetensors"}
    registry.verify(entry)
    path = registry.artifact_path(entry.artifacts[0])
    path.write_text("[]")
    with pytest.raises(FailedPrecondition, match="another SHA-256") as caught:
        registry.verify(entry)
    assert caught.value.reason == "ARTIFACT_MISMATCH"
    path.unlink()
    with pytest.raises(FailedPrecondition, match="is missing"):
        registry.verify(entry)


def test_a_full_disk_leaves_registry_and_files_as_they_were(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(_entry())
    before = registry.path.read_bytes()
    files = tmp_path / "made"
    files.mkdir()
    (files / "x.safetensors").write_bytes(b"weights")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(ResourceExhausted, match="what existed before is unchanged"):
            registry.add(_entry(kind="adapter", artifacts=list_artifacts(files, ".")), files)
    assert registry.path.read_bytes() == before
    assert (files / "x.safetensors").read_bytes() == b"weights"
    assert [p.name for p in registry.path.parent.glob(".registry.yaml*")] == []
    assert registry.add(_entry()).version == 2


def test_what_a_crash_left_in_the_way_is_moved_aside(registry: Registry, tmp_path: Path) -> None:
    left = registry.artifact_root / "shop" / "1"
    left.mkdir(parents=True)
    (left / "old.safetensors").write_bytes(b"old")
    files = tmp_path / "made"
    files.mkdir()
    (files / "new.safetensors").write_bytes(b"new")
    registry.add(_entry(kind="adapter", artifacts=list_artifacts(files, ".")), files)
    assert [p.name for p in left.iterdir()] == ["new.safetensors"]
    assert [p.read_bytes() for p in registry.artifact_root.rglob("old.safetensors")] == [b"old"]


def test_scores_replace_those_of_the_same_evaluation(registry: Registry) -> None:
    entry = registry.add(_entry())
    for rate in (0.5, 0.9):
        registry.record_evaluation(entry.name, Evaluation("evaluations/1", pass_rate=rate))
    registry.record_evaluation(entry.name, Evaluation("evaluations/2", pass_rate=0.1))
    scores = registry.get(entry.name).evaluations
    assert [(e.evaluation, e.pass_rate) for e in scores] == [("evaluations/1", 0.9), ("evaluations/2", 0.1)]
    assert registry.get(entry.name).revision == entry.revision


def test_shipped_models_are_shown_and_never_written(tmp_path: Path) -> None:
    shipped = dataclasses.replace(FULL, model_id="tiny", version=1, kind="base", shipped=True, evaluations=())
    registry = Registry(tmp_path, [shipped])
    assert registry.get("models/tiny") == shipped
    registry.set_alias("models/tiny/versions/1", "default")
    registry.record_evaluation("models/tiny/versions/1", Evaluation("evaluations/1"))
    written = yaml.safe_load(registry.path.read_text())["models"]["tiny"]
    assert list(written["versions"][1]) == ["evaluations"]
    again = Registry(tmp_path, [shipped])
    assert again.get("models/tiny/aliases/default").artifacts == shipped.artifacts
    assert len(again.get("models/tiny").evaluations) == 1
    assert again.add(_entry("tiny")).version == 2


@pytest.mark.parametrize(
    "text", ["{", "[]", "schema_version: 99", "schema_version: 1\nmodels: {a: {versions: {1: {}}}}"]
)
def test_a_damaged_file_is_named_and_kept(tmp_path: Path, text: str) -> None:
    registry = Registry(tmp_path)
    registry.path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"registry\.yaml"):
        registry.read()
    with pytest.raises(InvalidArgument, match=r"registry\.yaml"):
        registry.add(_entry())
    assert registry.path.read_text() == text


def test_a_change_by_another_process_is_seen(tmp_path: Path) -> None:
    mine, theirs = Registry(tmp_path), Registry(tmp_path)
    assert mine.read().entries == {}
    theirs.add(_entry())
    assert list(mine.read().entries) == ["models/shop/versions/1"]


def test_a_model_elsewhere_is_entered_once(registry: Registry) -> None:
    remote = _entry("r", kind="remote", base="", source=Source("remote", "https://example.test/v1", "big"))
    first, was_there = registry.add_once(remote)
    again, was_there_now = registry.add_once(remote)
    assert (was_there, was_there_now) == (False, True)
    assert again == first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("models/a", ModelName("a")),
        ("models/a/versions/12", ModelName("a", 12)),
        ("models/a/aliases/b", ModelName("a", None, "b")),
    ],
)
def test_names_are_parsed(name: str, expected: ModelName) -> None:
    assert ModelName.parse(name) == expected


def _write(home: Path, model_ids: list[str], barrier: Any) -> None:
    registry = Registry(home)
    barrier.wait()
    for model_id in model_ids:
        entry = registry.add(_entry(model_id))
        registry.set_alias(entry.name, "newest")


@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plans=st.lists(st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4), min_size=2, max_size=3))
def test_writers_at_the_same_time_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory, plans: list[list[str]]
) -> None:
    home = tmp_path_factory.mktemp("home")
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(len(plans) + 1)
    writers = [context.Process(target=_write, args=(home, plan, barrier)) for plan in plans]
    for writer in writers:
        writer.start()
    reader = Registry(home)
    barrier.wait()
    while any(writer.is_alive() for writer in writers):
        reader.read()
    assert [writer.exitcode for writer in writers] == [0] * len(writers)
    snapshot = reader.read()
    for model_id in ("a", "b"):
        count = sum(plan.count(model_id) for plan in plans)
        assert sorted(e.version for e in snapshot.versions(model_id)) == list(range(1, count + 1))
    assert snapshot.revision == 2 * sum(map(len, plans)) - _idle_moves(snapshot, plans)


def _idle_moves(snapshot: Any, plans: list[list[str]]) -> int:
    """Alias moves that found the alias there already, because another writer's move came later than the version."""
    moves = sum(len(history) for model in snapshot.aliases.values() for history in model.values())
    return sum(map(len, plans)) - moves
