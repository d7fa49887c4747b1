"""Writing scenarios: one with comments to fill in, out of held-back conversations, out of what a tester broke."""

from __future__ import annotations

import argparse
import re
from importlib import resources
from pathlib import Path

import yaml

from chatmill.cli import console as consoles
from chatmill.cli import settings
from chatmill.cli.evals import results
from chatmill.cli.meshes import found_or_started
from chatmill.errors import AlreadyExists, InvalidArgument
from chatmill.eval.v1 import DraftScenarioRequest, DraftScenariosRequest, HumanEvalServiceStub
from chatmill.recipe.mesh import FOREVER
from chatmill.runtime.channel import connect_service

SUITE_FILE = "suite.yaml"
TEMPLATE = "scenario.yaml"
FORBIDDEN = re.compile(r"[^a-z0-9._-]+")
LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*")


async def new(arguments: argparse.Namespace) -> int:
    """Write a commented scenario, or a suite of one."""
    path: Path = arguments.path
    if not LANGUAGE.fullmatch(arguments.language):
        raise InvalidArgument(f"--language {arguments.language}: must be a code such as en or zh")
    if path.suffix in (".yaml", ".yml"):
        _write_new(path, scenario_text(identifier(path.stem), arguments.language))
        print(path)
        return 0
    scenario = path / "scenarios" / "returns.yaml"
    name = identifier(path.name or Path.cwd().name)
    _write_new(path / SUITE_FILE, suite_text(name, "What this suite is for.", "scenarios/*.yaml"))
    _write_new(scenario, scenario_text("returns", arguments.language))
    print(f"{path / SUITE_FILE}\n{scenario}")
    return 0


def scenario_text(scenario: str, language: str) -> str:
    """A scenario with comments, ready to be changed."""
    text = resources.files("chatmill.cli.evals").joinpath(TEMPLATE).read_text(encoding="utf-8")
    return text.format(id=scenario, language=language)


def suite_text(suite: str, description: str, pattern: str) -> str:
    """A suite file that takes in all files of a pattern."""
    head = "# Raise the version whenever a verdict could change; only runs of the same content are compared.\n"
    values = {"schema": 1, "id": suite, "version": "1", "description": description, "defaults": {"trials": 1}}
    return head + yaml.safe_dump({**values, "scenarios": [pattern]}, allow_unicode=True, sort_keys=False, width=120)


def identifier(text: str) -> str:
    """A name as ids are written: lower-case letters, digits, dots, hyphens and underscores."""
    return FORBIDDEN.sub("-", text.lower()).strip("-._")[:80] or "scenario"


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        raise AlreadyExists(f"{path} is there already; name another file, or move it away")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


async def from_dataset(arguments: argparse.Namespace) -> int:
    """Scenario files out of held-back conversations, in a suite of their own."""
    folder: Path = arguments.to
    if (folder / SUITE_FILE).exists():
        raise AlreadyExists(f"{folder / SUITE_FILE} is there already; name another folder with --to")
    dataset = arguments.dataset.removeprefix("datasets/")
    request = DraftScenariosRequest(
        dataset=f"datasets/{dataset}",
        max_conversations=arguments.count,
        seed=arguments.seed,
        max_turns=arguments.max_turns,
    )
    console, made, left_out = consoles.stderr(), 0, 0
    async with results.evals(arguments) as mesh:
        async for drafted in mesh.evals.DraftScenarios(request, timeout=FOREVER):
            if drafted.left_out:
                left_out += 1
                console.print(f"left out: {drafted.item}: {drafted.left_out}", style="dim", markup=False)
                continue
            _write_new(folder / "scenarios" / f"{drafted.scenario}.yaml", drafted.yaml)
            made += 1
    if made:
        told = f"Out of held-back conversations of {dataset}, drawn with seed {arguments.seed}."
        _write_new(folder / SUITE_FILE, suite_text(identifier(dataset), told, "scenarios/*.yaml"))
    print(f"{made} scenarios in {folder}, {left_out} conversations left out")
    return 0 if made else 2


async def from_label(arguments: argparse.Namespace) -> int:
    """The scenario of a confirmed defect."""
    name = arguments.defect if arguments.defect.startswith("defects/") else f"defects/{arguments.defect}"
    config = settings.load(arguments)
    async with (
        found_or_started(arguments, config, consoles.stderr(), services=("eval",)) as found,
        connect_service("eval", found.config) as channel,
    ):
        answer = await HumanEvalServiceStub(channel).DraftScenario(DraftScenarioRequest(name=name))
    path = arguments.to / f"{answer.scenario}.yaml"
    _write_new(path, answer.yaml)
    print(path)
    return 0
