"""A suite: scenarios under one id and version, read from a folder with a `suite.yaml`, or from a single scenario file.

It knows where suites may lie and how to tell one content from another; it knows no run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from chatmill import located_yaml
from chatmill.errors import ChatmillError, FieldViolation, InvalidArgument, NotFound, PermissionDenied
from chatmill.plugins import nearest
from eval_svc.scenario import Scenario
from eval_svc.scenario_file import (
    build_scenario,
    check_problems,
    read_scenario,
    scenario_from_mapping,
    structural_problems,
)
from eval_svc.schema import suite_schema

SUITE_FILE = "suite.yaml"
SHIPPED = Path(__file__).parent / "suites"
"""Suites that come with Chatmill."""

DEFAULT_TRIALS = 1
_CHECKS = ("expect", "forbid")
_VALIDATOR = jsonschema.Draft202012Validator(suite_schema(with_checks=False))


@dataclass(frozen=True)
class Suite:
    """Scenarios that belong together.

    Attributes:
        id: name of the suite.
        version: raised by its author whenever a verdict could change.
        title: one line for reports.
        description: what it is for.
        scenarios: in the order of the file, ids unique.
        trials: how often a scenario is played that says nothing itself.
    """

    id: str
    version: str
    scenarios: tuple[Scenario, ...]
    title: str = ""
    description: str = ""
    trials: int = DEFAULT_TRIALS

    @property
    def digest(self) -> str:
        """SHA-256 over the content of all scenarios; results are comparable only under the same digest."""
        content = json.dumps([_plain(s.raw) for s in self.scenarios], sort_keys=True, ensure_ascii=False, default=str)
        return hashlib.sha256(f"{self.id}\n{content}".encode()).hexdigest()

    @property
    def turns_digest(self) -> str:
        """SHA-256 over what is said to the agent alone; stored replies can be rescored while it holds."""
        said = [
            [s.id, [[t.user, *t.variants] for t in s.turns], s.memory.lines(), [(m.role, m.content) for m in s.history]]
            for s in self.scenarios
        ]
        return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()

    def select(self, tags: Sequence[str]) -> Suite:
        """The scenarios that have one of the tags; all if there are none. Raises InvalidArgument if nothing is left."""
        if not tags:
            return self
        chosen = tuple(s for s in self.scenarios if set(tags) & set(s.tags))
        if not chosen:
            known = sorted({tag for s in self.scenarios for tag in s.tags})
            raise InvalidArgument.field(
                "tags", f"no scenario of {self.id} has any of {list(tags)}; known: {', '.join(known)}"
            )
        return replace(self, scenarios=chosen)

    def snapshot(self) -> dict[str, Any]:
        """All that is needed to build it again, as JSON; a run keeps it, since files change."""
        return {
            "id": self.id,
            "version": self.version,
            "title": self.title,
            "description": self.description,
            "trials": self.trials,
            "scenarios": [_plain(s.raw) for s in self.scenarios],
        }

    @classmethod
    def from_snapshot(cls, data: Mapping[str, Any]) -> Suite:
        """The suite that a snapshot was made of."""
        return _restored(json.dumps(data, sort_keys=True))


@lru_cache(maxsize=8)
def _restored(snapshot: str) -> Suite:
    """A run, its count and each report ask for the same one; checking hundreds of scenarios takes a second."""
    data = json.loads(snapshot)
    scenarios = tuple(scenario_from_mapping(raw, f"{data['id']}[{i}]") for i, raw in enumerate(data["scenarios"]))
    return Suite(data["id"], data["version"], scenarios, data["title"], data["description"], data["trials"])


def _plain(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Dates as text, so that JSON takes them."""
    plain: dict[str, Any] = json.loads(json.dumps(raw, ensure_ascii=False, default=str))
    return plain


def read_suite(path: Path, roots: Sequence[Path] | None = None) -> Suite:
    """The suite in the folder, in its `suite.yaml`, or the single scenario in the file.

    Args:
        roots: folders that all its files must lie in, links followed; without them, the suite's own folder.

    Raises:
        InvalidArgument: every problem of every file, each with file and line.
        NotFound: there is no such folder or file, or the suite names a file that is missing.
        PermissionDenied: the file is outside the roots.
    """
    file = path / SUITE_FILE if path.is_dir() else path
    allowed = [root.resolve() for root in ((file.parent,) if roots is None else roots)]
    if not _within(file, allowed):
        raise PermissionDenied(_outside(file, allowed), reason="PATH_NOT_ALLOWED")
    document = located_yaml.read(file)
    if isinstance(document.data, dict) and "turns" in document.data:
        scenario = read_scenario(file)
        return Suite(scenario.id, "0", (scenario,), scenario.title, trials=scenario.trials or DEFAULT_TRIALS)
    problems = list(structural_problems(document, _VALIDATOR))
    if problems:
        raise located_yaml.refuse(problems)
    data = document.data
    defaults = dict(data.get("defaults", {}))
    problems += check_problems(document, ("defaults",), defaults)
    if problems:  # told once, and not again in every scenario
        defaults = {key: value for key, value in defaults.items() if key not in _CHECKS}
    found: list[Scenario] = []
    for position, pattern in enumerate(data["scenarios"]):
        try:
            found += _scenarios(file, pattern, defaults, allowed)
        except (NotFound, PermissionDenied) as error:
            problems.append(document.problem(("scenarios", position), error.message))
        except InvalidArgument as error:
            problems += error.violations
    problems += _clashes(document, found)
    if problems:
        raise located_yaml.refuse(problems)
    return Suite(
        id=data["id"],
        version=str(data["version"]),
        scenarios=tuple(found),
        title=data.get("title", data["id"]),
        description=data.get("description", ""),
        trials=data.get("defaults", {}).get("trials", DEFAULT_TRIALS),
    )


def _within(path: Path, roots: Iterable[Path]) -> bool:
    """Whether the file lies in one of the folders, links followed."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return False
    return any(real.is_relative_to(root) for root in roots)


def _outside(path: Path, roots: Iterable[Path]) -> str:
    allowed = ", ".join(map(str, roots)) or "none"
    return (
        f"{path} is outside the folders that suites may lie in ({allowed}); add its folder to eval.suite_roots in "
        "chatmill.yaml"
    )


def _scenarios(file: Path, pattern: str, defaults: Mapping[str, Any], roots: Sequence[Path]) -> Iterable[Scenario]:
    folder = file.parent.resolve()
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise NotFound(f"{pattern!r} leaves the suite's folder; keep scenario files inside it")
    paths = sorted(folder.glob(pattern)) if any(c in pattern for c in "*?[") else [folder / pattern]
    paths = [path for path in paths if path.name != SUITE_FILE]
    for path in paths:  # before anything else is told of them
        if not _within(path, roots):
            raise PermissionDenied(_outside(path, roots), reason="PATH_NOT_ALLOWED")
    if not paths or not paths[0].exists():
        names = [str(p.relative_to(folder)) for p in folder.rglob("*.yaml")]
        raise NotFound(f"no file {pattern!r} in {folder}{nearest(pattern, names)}")
    problems: list[FieldViolation] = []
    for path in paths:
        try:
            yield _with_defaults(path, defaults)
        except InvalidArgument as error:
            problems += error.violations
    if problems:
        raise located_yaml.refuse(problems)


def _with_defaults(path: Path, defaults: Mapping[str, Any]) -> Scenario:
    document = located_yaml.read(path)
    if isinstance(document.data, dict):
        merged = dict(document.data)
        for key in ("trials", "severity"):
            if key in defaults:
                merged.setdefault(key, defaults[key])
        for key in ("tags", "allow"):
            if key in defaults and isinstance(merged.get(key, []), list):
                merged[key] = [*merged.get(key, []), *(v for v in defaults[key] if v not in merged.get(key, []))]
        if "language" in defaults and isinstance(merged.get("persona", {}), dict):
            merged["persona"] = {"language": defaults["language"], **merged.get("persona", {})}
        if isinstance(merged.get("turns"), list):
            merged["turns"] = [_with_checks(turn, at, defaults) for at, turn in enumerate(merged["turns"])]
        document = replace(document, data=merged)
    return build_scenario(document)


def _with_checks(turn: Any, position: int, defaults: Mapping[str, Any]) -> Any:
    """A turn with the checks that the suite has for all; behind its own, whose names and lines stay what they are."""
    if not isinstance(turn, dict):
        return turn
    merged = dict(turn)
    for key in _CHECKS:
        if key in defaults and isinstance(turn.get(key, []), list):
            named = [{**c, "id": f"{c['id']}-{position}"} if "id" in c else c for c in defaults[key]]
            merged[key] = [*turn.get(key, []), *named]
    return merged


def _clashes(document: located_yaml.Document, scenarios: Sequence[Scenario]) -> Iterable[FieldViolation]:
    seen: set[str] = set()
    for scenario in scenarios:
        if scenario.id in seen:
            yield document.problem(("scenarios",), f"two scenarios have the id {scenario.id!r}")
        seen.add(scenario.id)


@dataclass(frozen=True, slots=True)
class SuiteLibrary:
    """Where suites are looked for.

    Attributes:
        roots: folders that suites named by path must lie in; the shipped ones are always allowed.
    """

    roots: tuple[Path, ...] = ()

    def find(self, name: str) -> Suite:
        """The suite of that name (`suites/{id}` or the id), or at that path.

        Raises:
            NotFound: neither a shipped suite nor a file; lists what there is.
            PermissionDenied: the path is outside the allowed folders, links followed.
            InvalidArgument: the files are wrong; names file and line.
        """
        wanted = name.removeprefix("suites/")
        folders = {folder.name: folder for folder in self._folders()}
        if wanted in folders:
            return read_suite(folders[wanted], self._roots())
        for folder in folders.values():
            if self._id_of(folder) == wanted:
                return read_suite(folder, self._roots())
        return read_suite(self._allowed(name, folders), self._roots())

    def _allowed(self, name: str, folders: Mapping[str, Path]) -> Path:
        path, roots = Path(name), self._roots()
        candidates = [path] if path.is_absolute() else [root / path for root in self.roots]
        try:
            # whether a file exists is not looked at before it is known to be allowed, so that nobody can probe the disk
            real = [c.resolve() for c in candidates]
            inside = [c for c in real if _within(c, roots)]
            existing = next((c for c in inside if c.exists()), None)
        except (OSError, RuntimeError, ValueError):
            raise InvalidArgument.field(
                "spec.scenario_suite", "is neither the name of a suite nor a usable path"
            ) from None
        if existing is not None:
            return existing
        if real and not inside:
            raise PermissionDenied(_outside(path, roots[:-1]), reason="PATH_NOT_ALLOWED")
        known = sorted(folders)
        raise NotFound(
            f"there is no suite {str(path)!r}{nearest(path.name, known) or '.'} "
            f"Installed: {', '.join(known) or 'none'}; or give the path of a folder with a suite.yaml",
            reason="SUITE_NOT_FOUND",
        )

    def _roots(self) -> list[Path]:
        """All folders that files of suites may lie in; the shipped ones are the last."""
        return [root.resolve() for root in (*self.roots, SHIPPED)]

    def installed(self) -> list[tuple[Suite | None, Path, str]]:
        """All suites that can be named by id: the suite (None if its files are wrong), its folder, and what is
        wrong."""
        found: list[tuple[Suite | None, Path, str]] = []
        for folder in self._folders():
            try:
                found.append((read_suite(folder, self._roots()), folder, ""))
            except ChatmillError as error:
                found.append((None, folder, error.message))
        return found

    def _folders(self) -> list[Path]:
        """Folders with a suite file: the shipped ones, and those right under a root or in its `suites` folder."""
        places = [SHIPPED, *(place for root in self.roots for place in (root, root / "suites"))]
        folders = [child for place in places if place.is_dir() for child in sorted(place.iterdir())]
        return [f for f in folders if (f / SUITE_FILE).is_file()]

    def _id_of(self, folder: Path) -> str:
        file = folder / SUITE_FILE
        try:
            data = located_yaml.read(file).data if _within(file, self._roots()) else None
        except ChatmillError:
            return ""
        return str(data.get("id", "")) if isinstance(data, dict) else ""


__all__ = ["DEFAULT_TRIALS", "SHIPPED", "SUITE_FILE", "Suite", "SuiteLibrary", "read_suite"]
