"""Reads a recipe: the file, then `--set key=value` over it, then paths and names resolved.

Whatever is wrong is reported together, each with its file and line or its `--set`, and before any work starts.
This module knows no service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from chatmill import agent
from chatmill.errors import FieldViolation, InvalidArgument
from chatmill.located_yaml import Location, locate, read, refuse, spell
from chatmill.plugins import nearest, parse_parameters
from chatmill.recipe.definition import DatasetSection, MethodSection, Recipe, RecipeTree, SuiteSection

REASON = "INVALID_RECIPE"
ID = re.compile(r"[a-z][a-z0-9-]{0,62}")
SHORTHANDS: dict[str, Location] = {
    "source": ("dataset", "sources"),
    "sources": ("dataset", "sources"),
    "class": ("dataset", "class"),
    "languages": ("dataset", "languages"),
    "test_fraction": ("dataset", "test_fraction"),
    "limit": ("dataset", "limit"),
    "base": ("method", "base"),
    "model_id": ("method", "model_id"),
    "replay": ("suite", "replay"),
}
"""Keys that may stand at the top, in the file and in `--set`, and what they are short for."""
SCALARS: dict[Location, Location] = {("method",): ("method", "name"), ("suite",): ("suite", "path")}
"""Sections that may be given as one text, and the key that the text is then taken for."""
RENAMED: dict[Location, Location] = {
    ("dataset", "source"): ("dataset", "sources"),
    ("dataset", "class"): ("dataset", "class_"),
}
PATHS: frozenset[Location] = frozenset({("agent",), ("dataset", "sources"), ("suite", "path"), ("method", "base")})
REMOVED = object()


@dataclass(slots=True)
class Layer:
    """Values by their full location, and where each was written.

    Attributes:
        values: location of a leaf (a scalar, a list or an empty mapping) to its value.
        origins: location to `file:line` or `--set key`.
    """

    values: dict[Location, Any]
    origins: dict[Location, str]

    def origin(self, location: Location) -> str:
        """Where `location`, or its nearest parent, was written; empty if nowhere."""
        while location not in self.origins and location:
            location = location[:-1]
        return self.origins.get(location, "")


def load(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe at `path` under `overrides`, each `key=value`; later ones win, an empty value takes the key away.

    Raises:
        NotFound: the recipe or its agent card doesn't exist.
        InvalidArgument: reason `INVALID_RECIPE` or `INVALID_AGENT_CARD`; one violation per wrong value.
    """
    document = read(path)
    if not isinstance(document.data, dict):
        raise refuse([document.problem((), "is not a recipe: it must be a mapping of keys")], reason=REASON)
    origins = {location: f"{path}:{line}" for location, line in document.lines.items()}
    merged = _layer(document.data, origins, path.parent)
    for override in overrides:
        _merge(merged, _override(override))
    tree = _parse(merged)
    return _resolve(path, tree, merged)


def _layer(data: dict[str, Any], origins: dict[Location, str], base: Path) -> Layer:
    """`data` flat, under canonical locations, its paths made absolute from `base`."""
    layer = Layer({}, {(): origins.get((), "")})
    for location, value in _leaves(data, ()):
        target = _canonical(location, value)
        if target in layer.values:
            told = f"is given twice, here and in {layer.origins[target]}; keep one"
            raise refuse([FieldViolation(_field(origins.get(location, ""), location), told)], reason=REASON)
        layer.values[target] = _anchored(target, value, base)
        while location:
            # parents are noted as well, so that a wrong section has a line of its own
            layer.origins.setdefault(target, origins.get(location, ""))
            location, target = location[:-1], target[:-1]
    return layer


def _leaves(value: Any, at: Location) -> Iterable[tuple[Location, Any]]:
    if isinstance(value, dict) and (value or not at):
        for key, inner in value.items():
            yield from _leaves(inner, (*at, str(key)))
    else:
        yield at, value


def _canonical(location: Location, value: Any) -> Location:
    head = SHORTHANDS.get(str(location[0]))
    if head:
        location = (*head, *location[1:])
    if not isinstance(value, dict | list):
        location = SCALARS.get(location, location)
    return RENAMED.get(location, location)


def _anchored(location: Location, value: Any, base: Path) -> Any:
    if location not in PATHS:
        return value
    if location == ("dataset", "sources"):
        return [_anchored_text(location, v, base) for v in (value if isinstance(value, list) else [value])]
    return _anchored_text(location, value, base)


def _anchored_text(location: Location, value: Any, base: Path) -> Any:
    if not isinstance(value, str) or not value:
        return value
    anchored = (base / Path(value).expanduser()).resolve()
    if location == ("method", "base") and not value.startswith((".", "/", "~")):
        # a name of the registry or the hub, unless such a folder is there, as transformers has it
        return str(anchored) if "/" in value and not value.startswith("models/") and anchored.is_dir() else value
    if location == ("suite", "path") and re.fullmatch(r"suites/[a-z0-9-]+", value) and not anchored.exists():
        return value
    return str(anchored)


def _override(text: str) -> Layer:
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise refuse(
            [FieldViolation(f"--set {text}", "must be key=value, for example source=mine.jsonl")], reason=REASON
        )
    location: Location = tuple(key.split("."))
    try:
        value = yaml.safe_load(raw) if raw.strip() else REMOVED
    except yaml.YAMLError as error:
        told = f"the value is not YAML: {' '.join(str(error).split())}; put it in quotes"
        raise refuse([FieldViolation(f"--set {key}", told)], reason=REASON) from None
    if _canonical(location, "") in PATHS and not isinstance(value, list) and value is not REMOVED:
        value = raw  # a path that looks like a number or a date is a path all the same
    data: Any = value
    for part in reversed(location):
        data = {part: data}
    origins: dict[Location, str] = {location[:length]: f"--set {key}" for length in range(len(location) + 1)}
    layer = _layer(data, origins, Path.cwd())
    layer.origins = dict.fromkeys(layer.origins, f"--set {key}")
    return layer


def _merge(into: Layer, over: Layer) -> None:
    for location, value in over.values.items():
        inside = [at for at in into.values if at[: len(location)] == location]
        for at in [*inside, *_rivals(location, into)]:
            del into.values[at]
            into.origins.pop(at, None)
        for parent in (location[:length] for length in range(1, len(location))):
            if parent in into.values:  # an empty mapping, or a text, that now gets a key
                del into.values[parent]
                into.origins[parent] = over.origins[location]
        if value is not REMOVED:
            into.values[location] = value
            into.origins[location] = over.origins[location]


def _rivals(location: Location, layer: Layer) -> list[Location]:
    """`suite.path` and `suite.replay` exclude each other, so setting one takes the other away."""
    other = {"path": "replay", "replay": "path"}
    if location[:1] != ("suite",) or len(location) < 2 or location[1] not in other:
        return []
    return [at for at in layer.values if at[:2] == ("suite", other[str(location[1])])]


def _parse(layer: Layer) -> RecipeTree:
    tree: dict[str, Any] = {}
    for location, value in layer.values.items():
        branch = tree
        for step in location[:-1]:
            branch = branch.setdefault(str(step), {})
            if not isinstance(branch, dict):
                told = f"{spell(location[:-1])} is a single value and takes no key"
                raise refuse([FieldViolation(_field(layer.origin(location), location), told)], reason=REASON)
        branch[str(location[-1])] = value
    try:
        return parse_parameters(RecipeTree, tree, field="")
    except InvalidArgument as error:
        raise refuse([_relocated(v, layer) for v in error.violations], reason=REASON) from None


def _relocated(violation: FieldViolation, layer: Layer) -> FieldViolation:
    """The violation under the name and line that the user wrote, in the words of a recipe."""
    location = locate(violation.field)
    told = violation.description.replace("class_", "class")
    if told.startswith("unknown parameter"):
        told = told.replace("unknown parameter", "unknown key")
        if len(location) == 1:
            known = [*RecipeTree.__dataclass_fields__, *SHORTHANDS]
            told = f"unknown key{nearest(str(location[0]), known)}"
    inner = (*location, told.split(" ")[0])
    return FieldViolation(_field(layer.origin(inner), location), told)


def _field(origin: str, location: Location) -> str:
    spelled = spell(location).replace("class_", "class")
    return origin if origin.startswith("--set") else ": ".join(part for part in (origin, spelled) if part)


def _resolve(path: Path, tree: RecipeTree, layer: Layer) -> Recipe:
    problems: list[FieldViolation] = []

    def check_id(location: Location, value: str) -> None:
        if not ID.fullmatch(value):
            told = f"must be lower-case letters, digits and hyphens, at most 63, beginning with a letter, not {value!r}"
            problems.append(FieldViolation(_field(layer.origin(location), location), told))

    name = tree.name or _slug(path.resolve().parent.name)
    check_id(("name",), name)
    dataset: DatasetSection = replace(tree.dataset, id=tree.dataset.id or name)
    check_id(("dataset", "id"), dataset.id)
    method: MethodSection = replace(tree.method, model_id=tree.method.model_id or name)
    if method.name == "scratch" and ("method", "base") not in layer.values:
        method = replace(method, base="")
    check_id(("method", "model_id"), method.model_id)
    if tree.promote:
        check_id(("promote",), tree.promote)
    for section, parameters in (("dataset", dataset.parameters), ("method", method.parameters)):
        at: Location = (section, "parameters")
        try:
            json.dumps(parameters, allow_nan=False)
        except (TypeError, ValueError) as error:
            told = f"must be plain texts, numbers, lists and mappings ({error}); put dates in quotes"
            problems.append(FieldViolation(_field(layer.origin(at), at), told))
    _check_suite(tree.suite, layer, problems)
    if tree.suite.replay is not None and dataset.test_fraction == 0:
        told = "is 0, so there is no held-back conversation for suite.replay; use 0.1, or a suite of scenarios"
        problems.append(FieldViolation(_field(layer.origin(("dataset", "test_fraction")), ("test_fraction",)), told))
    if method.base == "" and not tree.baseline:
        told = "is required by a method without a base: there is nothing else to compare with"
        problems.append(FieldViolation(_field(layer.origin(("baseline",)), ("baseline",)), told))
    if problems:
        raise refuse(problems, reason=REASON)
    return Recipe(
        path=path.resolve(),
        name=name,
        card=agent.load(Path(tree.agent)),
        dataset=dataset,
        method=method,
        suite=tree.suite,
        baseline=model_name(tree.baseline) if tree.baseline else "",
        trials=tree.trials,
        gate=tree.gate,
        promote=tree.promote,
        origins={spell(location): origin for location, origin in layer.origins.items()},
    )


def _check_suite(suite: SuiteSection, layer: Layer, problems: list[FieldViolation]) -> None:
    at: Location = ("suite", "path")
    if suite.path and not suite.path.startswith("suites/") and not Path(suite.path).exists():
        told = f"there is no {suite.path}; name a folder or file of scenarios, or suites/ID of an installed suite"
        problems.append(FieldViolation(_field(layer.origin(at), ("suite",)), told))


def _slug(text: str) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
    return slug if slug[:1].isalpha() else f"m-{slug}".strip("-")


def model_name(text: str) -> str:
    """`shop`, `shop/aliases/live` or `models/shop` as a resource name."""
    return text if text.startswith("models/") else f"models/{text}"
