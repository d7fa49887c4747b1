"""Asks the mesh, before any work starts, whether it knows the names that the recipe uses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from chatmill.dataset.v1 import ListDatasetClassesRequest
from chatmill.errors import FieldViolation, NotFound
from chatmill.eval.v1 import ListSuitesRequest
from chatmill.factory.v1 import GetModelRequest, ListTrainingMethodsRequest
from chatmill.located_yaml import refuse
from chatmill.plugins import nearest
from chatmill.recipe.definition import Recipe
from chatmill.recipe.evaluation import check_suite
from chatmill.recipe.mesh import Mesh
from chatmill.recipe.reading import model_name
from chatmill.recipe.steps import blamed_on


async def check(recipe: Recipe, mesh: Mesh) -> str:
    """Look up class, method, their parameters, base, baseline and suite; what was found, in a sentence.

    Raises:
        NotFound: a name that the mesh doesn't know, with its line and the nearest that it does.
        InvalidArgument: reason `INVALID_RECIPE`; parameters that the class or the method doesn't have.
    """
    classes = (await mesh.datasets.ListDatasetClasses(ListDatasetClassesRequest())).dataset_classes
    methods = (await mesh.factory.ListTrainingMethods(ListTrainingMethodsRequest())).training_methods
    _known(recipe, "dataset.class_", "dataset class", recipe.dataset.class_, (c.class_name for c in classes))
    _known(recipe, "method.name", "training method", recipe.method.name, (m.method for m in methods))
    problems: list[FieldViolation] = []
    for entry in classes:
        if entry.class_name == recipe.dataset.class_:
            names = [p.name for p in entry.parameters]
            problems += _parameters(recipe, "dataset.parameters", recipe.dataset.parameters, names)
    for method in methods:
        if method.method == recipe.method.name:
            names = [p.name for p in method.parameters]
            problems += _parameters(recipe, "method.parameters", recipe.method.parameters, names)
    if problems:
        raise refuse(problems, reason="INVALID_RECIPE")
    await _models(recipe, mesh)
    if recipe.suite.path.startswith("suites/"):
        suites = (await mesh.evals.ListSuites(ListSuitesRequest())).suites
        _known(recipe, "suite.path", "suite", recipe.suite.path, (s.name for s in suites))
    base = recipe.method.base
    known = recipe.baseline or (model_name(base) if _in_registry(base) else "")
    if known:
        await check_suite(recipe, mesh, known)
    return f"class {recipe.dataset.class_}, method {recipe.method.name}, base {recipe.method.base or 'none'}"


async def _models(recipe: Recipe, mesh: Mesh) -> None:
    base = recipe.method.base
    if _in_registry(base):
        with blamed_on(recipe, "method.base"):
            await mesh.registry.GetModel(GetModelRequest(name=model_name(base)))
    named = {"baseline": recipe.baseline, "suite.judge": recipe.suite.judge, "suite.customer": recipe.suite.customer}
    for key, name in named.items():
        if name:
            with blamed_on(recipe, key):
                await mesh.registry.GetModel(GetModelRequest(name=model_name(name)))


def _in_registry(base: str) -> bool:
    return bool(base) and ("/" not in base or base.startswith("models/"))


def _known(recipe: Recipe, key: str, kind: str, name: str, installed: Iterable[str]) -> None:
    names = sorted(installed)
    if name not in names:
        raise NotFound(
            f"{recipe.where(key)}: unknown {kind} {name!r}{nearest(name, names) or '.'} "
            f"Installed: {', '.join(names) or 'none'}.",
            reason="UNKNOWN_PLUGIN",
        )


def _parameters(recipe: Recipe, key: str, given: Mapping[str, Any], known: list[str]) -> list[FieldViolation]:
    return [
        FieldViolation(recipe.where(f"{key}.{name}"), f"unknown parameter{nearest(name, known)}")
        for name in given
        if name not in known
    ]
