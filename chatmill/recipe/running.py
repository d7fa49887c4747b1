"""A run of a recipe from its first step to its scoreboard.

This module knows neither terminal nor process: the command hands it a mesh and listens.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from chatmill import __version__, agent
from chatmill.config import AGENT_CARD
from chatmill.dataset.v1 import Dataset, Split
from chatmill.factory.v1 import Model
from chatmill.recipe import scoreboard, steps
from chatmill.recipe.checking import check
from chatmill.recipe.definition import Recipe
from chatmill.recipe.evaluation import check_suite, evaluate, export_report
from chatmill.recipe.mesh import Mesh
from chatmill.recipe.observer import Observer, StepResult
from chatmill.recipe.steps import Made

T = TypeVar("T")
REPORT, SCOREBOARD, RUNS = "report.html", "scoreboard.json", "runs"


class Clock:
    """Tells the observer of each step and keeps how long it took."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.steps: dict[str, dict[str, Any]] = {}

    async def step(self, name: str, detail: str, work: Callable[[], Awaitable[tuple[T, Made]]]) -> T:
        """Do `work` as the step `name`; its error passes through."""
        self._observer.began(name, detail)
        began = time.monotonic()
        result, made = await work()
        taken = time.monotonic() - began
        self._observer.ended(StepResult(name, made.summary, made.reused, taken))
        self.steps[name] = {"seconds": round(taken, 3), "reused": made.reused, "summary": made.summary}
        return result


async def run(
    recipe: Recipe,
    mesh: Mesh,
    observer: Observer,
    home: Path,
    *,
    force: bool = False,
    machine: Callable[[], dict[str, Any]] = dict,
) -> dict[str, Any]:
    """Do what the recipe says and leave scoreboard, report and the agent card in `home`.

    Args:
        recipe: what to do.
        mesh: who does it.
        observer: who watches.
        home: folder for `scoreboard.json`, `report.html`, `runs/`, and `agent.yaml`, the card that testers are shown.
        force: redo the steps whose inputs have not changed as well.
        machine: asked at the end what is known of the machine; goes into the scoreboard as it is.

    Returns:
        the scoreboard; `scoreboard.exit_code` says what it means to a shell.

    Raises:
        ChatmillError: a step could not be done. Those before it keep what they made, and a later run takes it.
    """
    clock = Clock(observer)
    started, began = datetime.now(UTC), time.monotonic()

    async def checked() -> tuple[None, Made]:
        return None, Made(await check(recipe, mesh), reused=False)

    async def based() -> tuple[Model | None, Made]:
        base, made = await steps.find_base(recipe, mesh)
        if base is not None:  # one that was not in the registry before couldn't stand in for the candidate then
            await check_suite(recipe, mesh, base.name)
        return base, made

    await clock.step("check", str(recipe.path), checked)
    agent.write(recipe.card, home / AGENT_CARD, head=f"The agent card of {recipe.path}, left here by chatmill run.")
    dataset = await clock.step(
        "dataset", _sources(recipe), lambda: steps.make_dataset(recipe, mesh, observer, force=force)
    )
    base = await clock.step("base", recipe.method.base or "none", based)
    model = await clock.step(
        "train",
        f"{recipe.method.name} on {base.name if base else 'nothing'}",
        lambda: steps.train(recipe, mesh, observer, dataset, base, force=force),
    )
    evaluation = await clock.step(
        "evaluate",
        "held-back conversations" if recipe.suite.replay else recipe.suite.path,
        lambda: evaluate(recipe, mesh, observer, dataset, model, base, force=force),
    )
    board = scoreboard.of_evaluation(evaluation)
    promoted = None
    if recipe.promote and board["gate"]["state"] == "passed":

        async def promotion() -> tuple[Made, Made]:
            made = await steps.promote(recipe, mesh, model, f"gate passed in {evaluation.name}")
            return made, made

        await clock.step("promote", recipe.promote, promotion)
        promoted = {"alias": recipe.promote, "model": model.name}
    await export_report(mesh, evaluation.name, home / REPORT)
    complete: dict[str, Any] = {
        "schema": scoreboard.SCHEMA,
        "chatmill": __version__,
        "recipe": str(recipe.path),
        "name": recipe.name,
        "time": started.isoformat(timespec="seconds"),
        "model": model.name,
        "base": base.name if base else None,
        "dataset": _dataset(dataset),
        **board,
        "promoted": promoted,
        "steps": clock.steps,
        "seconds": round(time.monotonic() - began, 3),
        "machine": machine(),
        "report": str(home / REPORT),
        "scoreboard": str(home / SCOREBOARD),
    }
    scoreboard.write(complete, home / SCOREBOARD)
    stamp = re.sub(r"[^0-9T]", "", started.replace(tzinfo=None).isoformat(timespec="seconds"))
    scoreboard.write(complete, home / RUNS / f"{stamp}-{recipe.name}.json")
    return complete


def _sources(recipe: Recipe) -> str:
    return ", ".join(Path(source).name for source in recipe.dataset.sources)


def _dataset(dataset: Dataset) -> dict[str, Any]:
    sizes = {split.split: split.item_count for split in dataset.splits}
    return {
        "name": dataset.name,
        "digest": dataset.digest,
        "train_count": sizes.get(Split.SPLIT_TRAIN, 0),
        "test_count": sizes.get(Split.SPLIT_TEST, 0),
        "dropped_count": sum(drop.count for drop in dataset.drops),
    }
