"""The documents say what the code does: commands parse, options and keys are all there, and none that isn't."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import shlex
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatmill.cli import __main__ as command
from chatmill.recipe.definition import RecipeTree
from chatmill.recipe.reading import SHORTHANDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])
MANUALS = {"eval": "docs/evaluation.md"}
"""Commands that have a page of their own beside docs/cli.md."""


def parser(name: str) -> argparse.ArgumentParser:
    """The parser of a command, with the options of every command."""
    made = argparse.ArgumentParser(prog=f"chatmill {name}", exit_on_error=False)
    importlib.import_module(f"chatmill.cli.{name}").configure(made)
    command._common(made)
    return made


def options(of: argparse.ArgumentParser) -> Iterator[str]:
    """All long options, those of its actions too."""
    for action in of._actions:
        yield from (text for text in action.option_strings if text.startswith("--") and text != "--help")
        if isinstance(action, argparse._SubParsersAction):
            for inner in set(action.choices.values()):
                yield from options(inner)


def read(page: str) -> str:
    path = ROOT / page
    return path.read_text(encoding="utf-8") if path.is_file() else ""


@pytest.mark.parametrize("name", command.COMMANDS)
def test_every_option_is_in_the_manual(name: str) -> None:
    manual = read("docs/cli.md") + read(MANUALS.get(name, ""))
    assert f"chatmill {name}" in manual
    missing = sorted({o for o in options(parser(name)) if not re.search(rf"{o}(?![a-z0-9-])", manual)})
    assert not missing, f"chatmill {name}"


def test_the_manual_has_no_option_that_is_not_there() -> None:
    known = {option for name in command.COMMANDS for option in options(parser(name))} | {"--version", "--help"}
    said = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", read("docs/cli.md") + read("docs/evaluation.md")))
    assert said <= known, sorted(said - known)


def commands(page: Path) -> Iterator[str]:
    """The complete `chatmill ...` commands of a page: code lines, and pieces in backticks without optional parts."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for line in text.splitlines():
        code = re.match(r"(?:    |\$ |)(?:\.venv/bin/)?(chatmill [a-z].*)", line)
        if code and (line.startswith(" ") or "```" in text):
            yield code.group(1).partition("  #")[0]
    yield from (piece for piece in re.findall(r"`(?:\.venv/bin/)?(chatmill [a-z][^`]*)`", text) if "[" not in piece)


EXAMPLES = [(page, line) for page in PAGES for line in commands(page)]


@pytest.mark.parametrize(("page", "line"), EXAMPLES, ids=lambda value: getattr(value, "name", None))
def test_every_command_in_the_documents_parses(page: Path, line: str) -> None:
    name, *words = shlex.split(line)[1:]
    assert name in command.COMMANDS, f"{page.name}: {line}"
    if words in ([], ["show"], ["stats"], ["items"]):  # names the command, and does not show a call
        return
    try:
        everywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        command._common(everywhere)
        _, rest = everywhere.parse_known_args(words)
        parser(name).parse_args(rest)
    except (SystemExit, argparse.ArgumentError) as error:
        pytest.fail(f"{page.name}: {line}: {error}")


def keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted keys of a recipe, as its file spells them."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        kinds = typing.get_args(hints[field.name]) if isinstance(hints[field.name], types.UnionType) else ()
        section = next((k for k in (hints[field.name], *kinds) if dataclasses.is_dataclass(k)), None)
        key = prefix + field.name.rstrip("_")
        if section is None:
            yield key
        else:
            yield from keys(typing.cast("type", section), f"{key}.")


def test_every_key_of_a_recipe_is_in_its_manual_and_no_other() -> None:
    manual = read("docs/recipe.md")
    rows = [row.split("|")[1] for row in manual.splitlines() if row.startswith("| `")]
    said = {key for row in rows for key in re.findall(r"`([a-z0-9_.]+)`", row) if not key.endswith((".json", ".html"))}
    known = set(keys(RecipeTree))
    assert not known - said
    assert not said - known - {"suite", "suite.replay"}
    for short in SHORTHANDS:
        assert f"`{short}`" in manual


def test_every_make_target_that_is_named_is_there() -> None:
    makefile = read("Makefile")
    for page in PAGES:
        for target in re.findall(r"(?:`|^    )make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{page.name}: make {target}"


def test_every_link_between_the_documents_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.relative_to(ROOT)}: {target}"


def test_no_file_is_longer_than_the_house_allows() -> None:
    """Hand-written code only: the generated one is as long as the contract makes it."""
    folders = ("chatmill", "dataset_svc", "factory_svc", "inference_svc", "eval_svc", "bridge", "samples", "benchmarks")
    files = [
        path for name in (*folders, "scripts", "tests", "deploy", "examples") for path in (ROOT / name).rglob("*.py")
    ]
    hand_written = [path for path in files if path.parent.name != "v1"]
    long = {str(p.relative_to(ROOT)): n for p in hand_written if (n := len(p.read_bytes().splitlines())) > 400}
    assert not long
