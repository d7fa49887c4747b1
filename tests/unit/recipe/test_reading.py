"""Reading a recipe: defaults, shorthands, `--set`, paths, and mistakes with their lines."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from chatmill.errors import InvalidArgument, NotFound
from chatmill.recipe import reading


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(InvalidArgument) as caught:
        reading.load(path, overrides)
    return caught.value.message


def edit(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_a_whole_recipe(recipe_file: Path) -> None:
    recipe = reading.load(recipe_file)
    assert recipe.name == recipe.dataset.id == recipe.method.model_id == "fern"
    assert recipe.dataset.sources == (str(recipe_file.parent / "talks.jsonl"),)
    assert recipe.dataset.class_ == "shop"
    assert recipe.method.parameters == {"rank": 8}
    assert recipe.suite.path == str(recipe_file.parent / "suite")
    assert recipe.gate.min_pass_rate == 0.85
    assert recipe.promote == "live"
    assert recipe.card.name == "Nova"


def test_the_shortest_recipe_is_named_after_its_folder(recipe_file: Path) -> None:
    recipe_file.write_text("agent: agent.yaml\nsource: talks.jsonl\nsuite: suite\n", encoding="utf-8")
    recipe = reading.load(recipe_file)
    assert recipe.name == "client"
    assert (recipe.method.name, recipe.method.base, recipe.dataset.class_) == ("lora", "chatmill-tiny", "conversations")


def test_set_paths_start_from_the_working_directory(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert reading.load(recipe_file, ["source=mine.jsonl"]).dataset.sources == (str(tmp_path / "mine.jsonl"),)
    both = reading.load(recipe_file, ["sources=[a.jsonl, b.jsonl]"])
    assert both.dataset.sources == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"))


def test_set_reaches_sections_shorthands_and_new_keys(recipe_file: Path) -> None:
    given = ["limit=5", "class=conversations", "method.parameters.epochs=2", "gate.max_critical=0", "method=scratch"]
    recipe = reading.load(recipe_file, [*given, "baseline=chatmill-tiny"])
    assert (recipe.dataset.limit, recipe.dataset.class_) == (5, "conversations")
    assert recipe.method.parameters == {"rank": 8, "epochs": 2}
    assert recipe.gate.max_critical == 0
    assert recipe.method.name == "scratch"
    assert recipe.baseline == "models/chatmill-tiny"


def test_an_empty_value_takes_a_key_or_a_section_away(recipe_file: Path) -> None:
    recipe = reading.load(recipe_file, ["promote=", "gate=", "method.parameters="])
    assert recipe.promote == ""
    assert recipe.gate.min_pass_rate is None
    assert recipe.method.parameters == {}


def test_replay_takes_the_place_of_the_suite_and_back(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = reading.load(recipe_file, ["suite.replay.max_turns=2"])
    assert recipe.suite.path == ""
    assert recipe.suite.replay is not None
    assert recipe.suite.replay.max_turns == 2
    edit(recipe_file, "suite: suite", "suite: {replay: {max_turns: 3}}")
    monkeypatch.chdir(recipe_file.parent)
    assert reading.load(recipe_file, ["suite=suite"]).suite.replay is None


def test_an_installed_suite_is_no_path(recipe_file: Path) -> None:
    assert reading.load(recipe_file, ["suite=suites/undesired"]).suite.path == "suites/undesired"


@pytest.mark.parametrize("base", ["Qwen/Qwen2.5-0.5B-Instruct", "chatmill-tiny", "models/shop/versions/2"])
def test_a_base_that_is_a_name_stays_one(recipe_file: Path, base: str) -> None:
    assert reading.load(recipe_file, [f"base={base}"]).method.base == base


def test_a_base_that_is_a_folder_becomes_absolute(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for written in ("./own/model", "own/model"):
        assert reading.load(recipe_file, [f"base={written}"]).method.base == str(tmp_path / "own" / "model")


@pytest.mark.parametrize(
    ("old", "new", "line", "told"),
    [
        ("promote: live", "promot: live", 15, "unknown key; did you mean 'promote'"),
        ("promote: live", "sorce: x", 15, "did you mean 'source'"),
        ("  class: shop", "  clas: shop", 6, "did you mean 'class'"),
        ("  test_fraction: 0.1", "  test_fraction: many", 7, "must be a number"),
        ("  test_fraction: 0.1", "  test_fraction: 2", 7, "between 0 and 0.9"),
        ("trials: 2", "trials: 0", 13, "between 1 and 100"),
        ("gate: {min_pass_rate: 0.85}", "gate: {min_pass_rate: 85}", 14, "between 0 and 1"),
        ("promote: live", "promote: Live Now", 15, "lower-case"),
        ("suite: suite", "suite: nowhere", 12, "there is no"),
        ("  class: shop", "  class: shop\n  source: more.jsonl", 7, "given twice"),
        ("schema: 1", "schema: 9", 1, "must be 1"),
        ("  parameters: {rank: 8}", "  parameters: {since: 2024-01-01}", 11, "plain texts"),
        ("suite: suite", "suite: {replay: {max_turns: -1}}", 12, "must be 0 (all) or more"),
    ],
)
def test_a_mistake_names_its_line(recipe_file: Path, old: str, new: str, line: int, told: str) -> None:
    message = refused(edit(recipe_file, old, new))
    assert f"{recipe_file}:{line}" in message
    assert told in message


def test_all_mistakes_are_told_at_once(recipe_file: Path) -> None:
    edit(recipe_file, "promote: live", "promot: live")
    edit(recipe_file, "trials: 2", "trials: two")
    message = refused(recipe_file)
    assert "promot" in message
    assert "trials" in message


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("limit", "must be key=value"),
        ("limit=-1", "--set limit"),
        ("methd.name=lora", "did you mean 'method'"),
        ("gate.min_pass_rate={", "not YAML"),
        ("trials.often=2", "--set trials.often"),
    ],
)
def test_a_wrong_override_names_itself(recipe_file: Path, override: str, told: str) -> None:
    assert told in refused(recipe_file, override)


def test_replay_needs_held_back_conversations(recipe_file: Path) -> None:
    message = refused(recipe_file, "suite.replay.max_turns=1", "test_fraction=0")
    assert "no held-back conversation" in message


def test_scratch_needs_a_baseline(recipe_file: Path) -> None:
    edit(recipe_file, "  base: chatmill-tiny\n", "")
    assert "baseline" in refused(recipe_file, "method.name=scratch")


@pytest.mark.parametrize("text", ["- a list", "just text", "", "a: [1"])
def test_a_file_that_is_no_recipe(recipe_file: Path, text: str) -> None:
    recipe_file.write_text(text, encoding="utf-8")
    assert str(recipe_file) in refused(recipe_file)


def test_a_missing_recipe_or_card_is_named(recipe_file: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.yaml"):
        reading.load(recipe_file.parent / "absent.yaml")
    edit(recipe_file, "agent: agent.yaml", "agent: nobody.yaml")
    with pytest.raises(NotFound, match=r"nobody\.yaml"):
        reading.load(recipe_file)


def test_where_names_the_line_or_the_nearest_parent(recipe_file: Path) -> None:
    recipe = reading.load(recipe_file, ["limit=3"])
    assert recipe.where("method.base") == f"{recipe_file}:10: method.base"
    assert recipe.where("dataset.class_") == f"{recipe_file}:6: dataset.class"
    assert recipe.where("dataset.limit") == "--set limit"
    assert recipe.where("method.parameters.rank").startswith(f"{recipe_file}:11")


def test_conversations_given_as_a_recipe_are_told_apart(recipe_file: Path) -> None:
    packed = recipe_file.with_name("talks.jsonl.gz")
    packed.write_bytes(gzip.compress(b'{"id": "c-1"}\n'))
    assert "talks.jsonl.gz" in (told := refused(packed))
    assert "compressed with gzip; this must be a YAML file" in told
