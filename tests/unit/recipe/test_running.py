"""A run against fake services: what is done, what is taken from earlier runs, what a broken stream costs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chatmill import agent
from chatmill.common.v1 import JobState
from chatmill.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unavailable
from chatmill.eval.v1 import GateState
from chatmill.factory.v1 import Model, TrainingJob
from chatmill.recipe import reading, running, scoreboard
from chatmill.recipe.mesh import Followed, Mesh
from chatmill.recipe.observer import Progress, StepResult

from .fakes import World, mesh_of


class Notebook:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.steps: dict[str, StepResult] = {}
        self.seen: dict[str, list[Progress]] = {}
        self.notes: list[str] = []

    def began(self, step: str, detail: str) -> None:
        self.seen[step] = []

    def progress(self, step: str, progress: Progress) -> None:
        self.seen[step].append(progress)

    def note(self, step: str, text: str) -> None:
        self.notes.append(f"{step}: {text}")

    def ended(self, result: StepResult) -> None:
        self.steps[result.step] = result

    def reused(self) -> set[str]:
        return {name for name, step in self.steps.items() if step.reused}


@pytest.fixture
def world() -> World:
    made = World()
    made.models.append(Model(name="models/chatmill-tiny/versions/1", revision="tiny", parameter_count=5_000_000))
    return made


@pytest.fixture
async def mesh(world: World, tmp_path: Path) -> AsyncIterator[Mesh]:
    async with mesh_of(world, tmp_path / "home") as made:
        yield made


async def go(path: Path, mesh: Mesh, *overrides: str, force: bool = False) -> tuple[dict[str, Any], Notebook]:
    notebook = Notebook()
    recipe = reading.load(path, overrides)
    board = await running.run(recipe, mesh, notebook, path.parent.parent / "home", force=force)
    return board, notebook


async def test_a_run_does_every_step_and_leaves_its_scoreboard(recipe_file: Path, mesh: Mesh, world: World) -> None:
    board, notebook = await go(recipe_file, mesh)
    home = recipe_file.parent.parent / "home"
    assert world.calls == ["CreateDataset", "Train", "RunEvaluation"]
    assert notebook.reused() == {"base"}
    assert [p.done for p in notebook.seen["train"]] == [1, 2, 3, 4, 5]
    assert "dataset: left out 2: seen before (duplicates)" in notebook.notes
    assert json.loads((home / "scoreboard.json").read_text(encoding="utf-8")) == board
    assert (home / "report.html").read_text(encoding="utf-8") == "<html></html>"
    assert len(list((home / "runs").glob("*-fern.json"))) == 1
    assert agent.load(home / "agent.yaml") == agent.load(recipe_file.parent / "agent.yaml")
    assert board["candidate"]["pass_rate"] == pytest.approx(0.9)
    assert board["baseline"]["pass_rate"] == pytest.approx(0.2)
    assert board["candidate"]["pass_rate_interval"] == pytest.approx([0.8, 1.0])
    assert board["gate"] == {
        "state": "passed",
        "conditions": [{"condition": "pass rate >= 85%", "seen": "90%", "passed": True}],
    }
    assert board["verdict"] == "better"
    assert set(board["steps"]) == {"check", "dataset", "base", "train", "evaluate", "promote"}
    assert all(step["seconds"] >= 0 for step in board["steps"].values())
    assert board["promoted"] == {"alias": "live", "model": "models/fern/versions/1"}
    assert world.aliases == {"live": "models/fern/versions/1"}
    assert scoreboard.exit_code(board) == 0


async def test_the_services_get_what_the_recipe_says(recipe_file: Path, mesh: Mesh, world: World) -> None:
    await go(recipe_file, mesh, "languages=[en]", "method.seed=7", "gate.max_p95_ms=1500", "suite.temperature=0")
    spec = world.jobs[0].spec
    assert (spec.base, spec.dataset) == ("models/chatmill-tiny/versions/1", "datasets/fern")
    assert (spec.method, spec.seed, list(spec.languages)) == ("lora", 7, ["en"])
    assert dict(spec.parameters) == {"rank": 8}
    assert spec.system_prompt == "You are Nova of Fernhill."
    asked = world.evaluations[0].spec
    assert asked.scenario_suite == str(recipe_file.parent / "suite")
    assert asked.candidate.model == "models/fern/versions/1"
    assert asked.baseline.model == "models/chatmill-tiny/versions/1"
    assert asked.system_prompt == spec.system_prompt
    assert (asked.trials, asked.gate.min_pass_rate) == (2, 0.85)
    assert asked.gate.max_p95_latency.ToMilliseconds() == 1500
    assert asked.HasField("temperature")
    assert not asked.HasField("max_output_tokens")
    assert not asked.gate.HasField("min_difference")


async def test_nothing_changed_nothing_done(recipe_file: Path, mesh: Mesh, world: World) -> None:
    first, _ = await go(recipe_file, mesh)
    world.calls.clear()
    second, notebook = await go(recipe_file, mesh)
    assert world.calls == ["CreateDataset"]
    assert notebook.reused() == {"dataset", "base", "train", "evaluate", "promote"}
    assert second["candidate"] == first["candidate"]
    assert second["steps"]["train"]["reused"]


@pytest.mark.parametrize(
    ("override", "calls"),
    [
        ("method.parameters.rank=4", ["CreateDataset", "Train", "RunEvaluation"]),
        ("method.seed=1", ["CreateDataset", "Train", "RunEvaluation"]),
        ("limit=50", ["CreateDataset", "Train", "RunEvaluation"]),
        ("gate.min_pass_rate=0.5", ["CreateDataset", "RunEvaluation"]),
        ("trials=3", ["CreateDataset", "RunEvaluation"]),
        ("promote=next", ["CreateDataset"]),
    ],
)
async def test_only_what_depends_on_the_change_is_redone(
    recipe_file: Path, mesh: Mesh, world: World, override: str, calls: list[str]
) -> None:
    await go(recipe_file, mesh)
    world.calls.clear()
    await go(recipe_file, mesh, override)
    assert world.calls == calls


async def test_a_changed_scenario_is_evaluated_and_a_changed_prompt_trained(
    recipe_file: Path, mesh: Mesh, world: World
) -> None:
    await go(recipe_file, mesh)
    world.calls.clear()
    (recipe_file.parent / "suite" / "one.yaml").write_text("id: other\n", encoding="utf-8")
    await go(recipe_file, mesh)
    assert world.calls == ["CreateDataset", "RunEvaluation"]
    world.calls.clear()
    card = recipe_file.parent / "agent.yaml"
    card.write_text(card.read_text(encoding="utf-8").replace("Nova", "Lyra"), encoding="utf-8")
    await go(recipe_file, mesh)
    assert world.calls == ["CreateDataset", "Train", "RunEvaluation"]


async def test_force_redoes_everything(recipe_file: Path, mesh: Mesh, world: World) -> None:
    await go(recipe_file, mesh)
    world.calls.clear()
    board, notebook = await go(recipe_file, mesh, force=True)
    assert world.calls == ["CreateDataset", "Train", "RunEvaluation"]
    assert notebook.reused() == {"base"}
    assert board["model"] == "models/fern/versions/2"


async def test_broken_streams_go_on_where_they_broke(
    recipe_file: Path, mesh: Mesh, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chatmill.recipe.mesh.FIRST_DELAY", 0.0)
    world.break_streams_after = 2
    _, notebook = await go(recipe_file, mesh)
    assert world.calls == [
        "CreateDataset",
        "Train",
        "WatchTrainingJob after 2",
        "WatchTrainingJob after 4",
        "RunEvaluation",
        "WatchEvaluation after 2",
    ]
    assert [p.done for p in notebook.seen["train"]] == [1, 2, 3, 4, 5]
    assert [p.done for p in notebook.seen["evaluate"]] == [1, 2, 3, 4]
    assert any("lost the factory service" in note for note in notebook.notes)


async def test_a_service_that_stays_away_is_given_up(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatmill.recipe.mesh.FIRST_DELAY", 0.01)

    async def gone(*_: Any) -> AsyncIterator[Any]:
        raise Unavailable("no connection")
        yield

    followed: Followed[Any] = Followed("factory", gone, gone, "training_job", lambda text: None, patience=0.05)
    with pytest.raises(Unavailable, match="stayed away"):
        [event async for event in followed.events()]


async def test_a_job_of_an_earlier_run_is_followed(recipe_file: Path, mesh: Mesh, world: World) -> None:
    await go(recipe_file, mesh)
    done = world.jobs[0]
    world.models = [model for model in world.models if not model.name.startswith("models/fern/")]
    running_job = TrainingJob(name="trainingJobs/9", spec=done.spec, state=JobState.JOB_STATE_RUNNING)
    world.jobs.append(running_job)
    world.calls.clear()
    _, notebook = await go(recipe_file, mesh)
    assert "Train" not in world.calls
    assert "WatchTrainingJob after 0" in world.calls
    assert any("trainingJobs/9 is at work" in note for note in notebook.notes)


async def test_a_failed_training_says_why_and_leaves_the_old_scoreboard(
    recipe_file: Path, mesh: Mesh, world: World
) -> None:
    await go(recipe_file, mesh)
    board = recipe_file.parent.parent / "home" / "scoreboard.json"
    before = board.read_text(encoding="utf-8")
    world.fail_training = "the disk is full; free some space and start again"
    with pytest.raises(Aborted, match="the disk is full"):
        await go(recipe_file, mesh, "method.seed=2")
    assert board.read_text(encoding="utf-8") == before


async def test_nothing_to_replay_is_said_before_the_training(recipe_file: Path, mesh: Mesh, world: World) -> None:
    world.held_back = 0
    with pytest.raises(FailedPrecondition, match=r"datasets/fern holds no .* 7 of them are near-dup") as caught:
        await go(recipe_file, mesh, "suite=", "suite.replay={}")
    assert "dataset.sources" not in caught.value.message
    assert "Train" not in world.calls
    await go(recipe_file, mesh)  # scenarios need none


@pytest.mark.parametrize(
    ("state", "word", "code"),
    [(GateState.GATE_STATE_FAILED, "failed", 1), (GateState.GATE_STATE_INVALID, "invalid", 2)],
)
async def test_a_gate_that_does_not_pass_promotes_nothing(
    recipe_file: Path, mesh: Mesh, world: World, state: Any, word: str, code: int
) -> None:
    world.gate = state
    board, notebook = await go(recipe_file, mesh)
    assert board["gate"]["state"] == word
    assert scoreboard.exit_code(board) == code
    assert world.aliases == {}
    assert "promote" not in notebook.steps
    assert board["promoted"] is None


@pytest.mark.parametrize(
    ("override", "told", "where"),
    [
        ("class=shopp", "did you mean 'shop'", "--set class"),
        ("method=loraa", "did you mean 'lora'", "--set method"),
        ("base=chatmill-tony", "no model models/chatmill-tony", "--set base"),
        ("baseline=nobody", "no model models/nobody", "--set baseline"),
        ("suite=suites/undesried", "did you mean 'suites/undesired'", "--set suite"),
    ],
)
async def test_unknown_names_are_told_before_any_work(
    recipe_file: Path, mesh: Mesh, world: World, override: str, told: str, where: str
) -> None:
    with pytest.raises(NotFound) as caught:
        await go(recipe_file, mesh, override)
    assert told in caught.value.message
    assert where in caught.value.message
    assert world.calls == []


async def test_unknown_parameters_are_told_before_any_work(recipe_file: Path, mesh: Mesh, world: World) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await go(recipe_file, mesh, "method.parameters.epoch=3", "dataset.parameters.strikt=true")
    assert "did you mean 'epochs'" in caught.value.message
    assert "did you mean 'strict'" in caught.value.message
    assert world.calls == []


async def test_a_broken_scenario_is_told_before_any_work(recipe_file: Path, mesh: Mesh, world: World) -> None:
    (recipe_file.parent / "suite" / "one.yaml").write_text("broken\n", encoding="utf-8")
    with pytest.raises(InvalidArgument, match=r"one\.yaml:1: broken"):
        await go(recipe_file, mesh)
    assert world.calls == []


async def test_a_dataset_of_another_recipe_is_not_replaced(recipe_file: Path, mesh: Mesh, world: World) -> None:
    await go(recipe_file, mesh)
    with pytest.raises(AlreadyExists, match=r"recipe\.yaml:5: dataset\.sources: datasets/fern holds other data"):
        await go(recipe_file, mesh, "name=other", "dataset.id=fern", "limit=3")
    assert world.datasets["datasets/fern"].labels["recipe"] == "fern"


@pytest.mark.parametrize(("base", "place"), [("org/model", "hub_id"), ("/somewhere/model", "folder")])
async def test_a_base_from_elsewhere_is_registered(
    recipe_file: Path, mesh: Mesh, world: World, base: str, place: str
) -> None:
    await go(recipe_file, mesh, f"base={base}")
    assert f"RegisterModel {place}" in world.calls
    assert world.jobs[0].spec.base == "models/registered/versions/1"


async def test_replay_uses_the_held_back_conversations(recipe_file: Path, mesh: Mesh, world: World) -> None:
    await go(recipe_file, mesh, "suite.replay.max_turns=2", "suite.replay.pass_ratio=55")
    asked = world.evaluations[0].spec.replay_suite
    assert (asked.dataset, asked.max_turns, asked.pass_ratio) == ("datasets/fern", 2, 55)
