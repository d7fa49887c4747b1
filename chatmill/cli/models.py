"""List and show models with their scores, and point aliases to them.

Without a mesh that runs, the factory is started for this command alone.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from chatmill.cli import settings

if TYPE_CHECKING:
    from chatmill.factory.v1 import EvaluationRecord, Model
    from chatmill.recipe.mesh import Mesh

KINDS = {1: "base", 2: "adapter", 3: "prompt", 4: "merged", 5: "remote"}
"""ModelKind in a word."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(action="list", json=False)
    actions = parser.add_subparsers(metavar="ACTION")
    listing = actions.add_parser("list", help="all models (the default)")
    listing.set_defaults(action="list")
    listing.add_argument("--json", action="store_true", help="as JSON")
    show = actions.add_parser("show", help="one model: how it came to be, its files, its scores")
    show.set_defaults(action="show")
    show.add_argument("model", help="its name, for example shop, shop/versions/2 or shop/aliases/live")
    show.add_argument("--json", action="store_true", help="as JSON")
    alias = actions.add_parser("alias", help="aliases")
    alias_actions = alias.add_subparsers(metavar="ACTION", required=True)
    setting = alias_actions.add_parser("set", help="point an alias to a version")
    setting.set_defaults(action="alias")
    setting.add_argument("alias", help="for example production")
    setting.add_argument("model", help="the version; a model's newest when it names none")
    setting.add_argument("--reason", default="", help="why, for the history")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    return settings.run_async(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    from chatmill.cli import console as consoles
    from chatmill.cli.meshes import found_or_started
    from chatmill.recipe.mesh import connected

    config = settings.load(arguments)
    async with (
        found_or_started(arguments, config, consoles.stderr(), services=("factory",)) as found,
        connected(found.config, services=("factory",)) as mesh,
    ):
        action = {"list": _list, "show": _show, "alias": _alias}[arguments.action]
        await action(arguments, mesh)
    return 0


async def _list(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill import paging
    from chatmill.cli.console import plain, print_json, stdout, table
    from chatmill.factory.v1 import ListModelsRequest

    pages = paging.every(mesh.registry.ListModels, ListModelsRequest(page_size=200))
    models = [one async for page in pages for one in page.models]
    if arguments.json:
        print_json([plain(model) for model in models])
        return
    made = table("model", "kind", "base", "made", "pass rate>", "verdict", "aliases")
    for model in models:
        rate, verdict = _newest_score(model)
        day = model.create_time.ToDatetime().strftime("%Y-%m-%d %H:%M")
        made.add_row(
            model.name,
            KINDS.get(model.kind, "?"),
            model.base or "-",
            day,
            rate,
            verdict,
            ", ".join(model.aliases) or "-",
        )
    stdout().print(made if models else "There are no models yet; `chatmill demo` makes one.")


def _newest_score(model: Model) -> tuple[str, str]:
    if not model.evaluations:
        return "-", "-"
    record = model.evaluations[-1]
    return _rate(record), record.verdict or "-"


def _rate(record: EvaluationRecord) -> str:
    return f"{record.pass_rate:.1%} ({100 * record.pass_rate_low:.0f} to {100 * record.pass_rate_high:.0f})"


async def _show(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill.cli.console import plain, print_json, stdout, table
    from chatmill.factory.v1 import GetModelRequest
    from chatmill.recipe.reading import model_name

    model = (await mesh.registry.GetModel(GetModelRequest(name=model_name(arguments.model)))).model
    if arguments.json:
        print_json(plain(model))
        return
    console = stdout()
    made = table("", "")
    for key, value in _facts(model):
        made.add_row(key, value)
    console.print(made)
    if model.evaluations:
        scores = table("evaluation", "suite", "pass rate>", "verdict", "gate", title="\nScores, newest last")
        for record in model.evaluations:
            gate = "-" if not record.HasField("gate_passed") else "passed" if record.gate_passed else "failed"
            scores.add_row(record.evaluation, record.suite, _rate(record), record.verdict or "-", gate)
        console.print(scores)


def _facts(model: Model) -> list[tuple[str, str]]:
    from google.protobuf.json_format import MessageToDict

    size = sum(artifact.size_bytes for artifact in model.artifacts)
    facts = [
        ("model", model.name),
        ("kind", KINDS.get(model.kind, "?")),
        ("description", model.description),
        ("base", model.base),
        ("revision", model.revision),
        ("aliases", ", ".join(model.aliases)),
        ("parameters", f"{model.parameter_count:,}" if model.parameter_count else ""),
        ("files", f"{len(model.artifacts)}, {size / 2**20:.1f} MiB" if model.artifacts else ""),
        ("context", f"{model.conversation.max_context:,} tokens" if model.conversation.max_context else ""),
        ("system prompt", model.conversation.system_prompt),
        ("licence", model.license),
    ]
    if model.HasField("data"):
        facts.append(("trained on", f"{model.data.example_count:,} conversations of {model.data.dataset}"))
    if model.HasField("training"):
        record = model.training
        text = f"{record.method}, {record.steps:,} steps, {record.seconds:,.0f} s, final loss {record.final_loss:.3f}"
        facts.append(("training", text))
        parameters = MessageToDict(record.parameters)
        facts.append(("", ", ".join(f"{key} {_number(value)}" for key, value in sorted(parameters.items()))))
    return [(key, value) for key, value in facts if value]


def _number(value: Any) -> Any:
    # a protobuf Struct knows only floats
    return int(value) if isinstance(value, float) and value.is_integer() else value


async def _alias(arguments: argparse.Namespace, mesh: Mesh) -> None:
    from chatmill.factory.v1 import GetModelRequest, SetAliasRequest
    from chatmill.recipe.reading import model_name

    model = (await mesh.registry.GetModel(GetModelRequest(name=model_name(arguments.model)))).model
    request = SetAliasRequest(model=model.name, alias=arguments.alias, reason=arguments.reason)
    answer = await mesh.registry.SetAlias(request)
    print(f"{arguments.alias} -> {answer.model.name}" + (f" (before: {answer.previous})" if answer.previous else ""))
