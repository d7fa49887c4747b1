"""Score models: run suites, look at results, write scenarios.

Without a mesh that runs, one is started for this command alone. Exit code of `run`, `resume`, `show` and `rescore`
0: the gate passed; 1: it failed; 2: the run says nothing, or something went wrong. docs/evaluation.md is the manual.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from chatmill.cli import settings

ACTIONS: Mapping[str, str] = {
    "run": "running:run",
    "resume": "running:resume",
    "list": "results:listed",
    "show": "results:show",
    "compare": "results:compare",
    "rescore": "results:rescore",
    "cancel": "results:cancel",
    "report": "results:report",
    "suites": "results:suites",
    "new": "drafting:new",
    "from-dataset": "drafting:from_dataset",
    "from-label": "drafting:from_label",
}
"""Action to module and coroutine under `chatmill.cli.evals`, which takes the arguments and returns the exit code."""

MODEL_HELP = (
    "a model of the mesh (shop, shop/versions/2, shop/aliases/live) or an OpenAI-compatible access point, URL#MODEL"
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(action="list", json=False, state="")
    actions = parser.add_subparsers(metavar="ACTION")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        one = actions.add_parser(
            name, help=text, description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        one.set_defaults(action=name)
        return one

    _run(add("run", "run a suite against a model, if wanted beside a baseline"))
    resume = add("resume", "follow an evaluation to its end; one that was broken off is taken up where it stood")
    resume.add_argument("evaluation", help="its name, as `list` shows it")
    _reports(resume, json_too=True)
    listing = add("list", "all evaluations, newest first (the default)")
    listing.add_argument(
        "--state", default="", help="only those that are queued, running, succeeded, failed or cancelled"
    )
    _json(listing)
    show = add("show", "the scoreboard of one evaluation; it may still be running")
    show.add_argument("evaluation", help="its name")
    _json(show)
    compare = add("compare", "the candidates of two evaluations of the same suite, paired by scenario")
    compare.add_argument("candidate", help="evaluation whose candidate is judged")
    compare.add_argument("baseline", help="evaluation whose candidate it is compared with")
    _json(compare)
    rescore = add("rescore", "score the stored replies again, by the suite as it is now; nothing is generated")
    rescore.add_argument("evaluation", help="its name")
    _reports(rescore, json_too=True)
    cancel = add("cancel", "stop an evaluation; it keeps what it has, and `resume` takes it up again")
    cancel.add_argument("evaluation", help="its name")
    report = add("report", "write the reports of an evaluation")
    report.add_argument("evaluation", help="its name")
    _reports(report, json_too=True)
    _json(add("suites", "the suites that are installed"))
    _drafts(add)


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _reports(parser: argparse.ArgumentParser, *, json_too: bool) -> None:
    group = parser.add_argument_group("files to write")
    if json_too:
        group.add_argument("--json", type=Path, metavar="FILE", help="verdict and figures in one small JSON object")
    group.add_argument("--html", type=Path, metavar="FILE", help="scoreboard, charts and every dialogue, in one file")
    group.add_argument("--junit", type=Path, metavar="FILE", help="a test case for each scenario, for CI systems")
    group.add_argument("--jsonl", type=Path, metavar="FILE", help="a line for each dialogue with all checks")


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "suite",
        nargs="?",
        metavar="SUITE",
        help="a suite that `chatmill eval suites` lists, or the path of its folder or of one scenario file",
    )
    parser.add_argument(
        "--replay", metavar="DATASET", help="instead of SUITE: the held-back conversations of a dataset"
    )
    parser.add_argument("--model", required=True, help=f"what is judged: {MODEL_HELP}")
    parser.add_argument("--baseline", help="what it is compared with, named like --model")
    parser.add_argument("--key-file", metavar="FILE", help="holds the key of access points, on the service's machine")
    play = parser.add_argument_group("how it is played")
    play.add_argument(
        "--trials", type=int, metavar="N", help="how often each scenario is played; else as the suite says"
    )
    play.add_argument("--seed", type=int, metavar="N", help="of all trials (default 0)")
    play.add_argument("--concurrency", type=int, metavar="N", help="conversations at once")
    play.add_argument("--tag", action="append", default=[], help="only scenarios with this tag; may be given again")
    play.add_argument(
        "--agent", type=Path, metavar="FILE", help="agent card: system prompt, and policies for the judge"
    )
    play.add_argument("--system", metavar="TEXT", help="system prompt, instead of an agent card's")
    play.add_argument("--max-tokens", type=int, metavar="N", help="of a reply (default 256)")
    play.add_argument("--temperature", type=float, metavar="T", help="of both sides (default 0)")
    play.add_argument("--turn-timeout", type=float, metavar="S", help="seconds for a whole reply (default 60)")
    play.add_argument("--latency-turns", type=int, metavar="N", help="replies to time one at a time afterwards")
    play.add_argument("--max-conversations", type=int, default=0, metavar="N", help="of a replay; 0 means all")
    play.add_argument("--judge", metavar="MODEL", help="who answers judge criteria, named like --model")
    play.add_argument("--judge-gates", action="store_true", help="let hard criteria decide; calibrate the judge first")
    play.add_argument("--customer", metavar="MODEL", help="who plays simulated customers; they never decide")
    gate = parser.add_argument_group("the gate")
    gate.add_argument(
        "--min-pass-rate",
        type=float,
        metavar="X",
        help="0 to 1 (default 0.8 without --baseline, --min-difference and --min-pass-hat-k)",
    )
    gate.add_argument("--min-difference", type=float, metavar="X", help="to the baseline, -1 to 1 (default -0.05)")
    gate.add_argument("--min-pass-hat-k", type=float, metavar="X", help="pass^k with k trials, 0 to 1")
    gate.add_argument("--max-p95-ms", type=float, metavar="MS", help="of a whole reply")
    gate.add_argument("--max-critical", type=int, metavar="N", help="scenarios with a critical error")
    gate.add_argument("--stop-early", action="store_true", help="end the run once the gate can't pass any more")
    parser.add_argument("--check", action="store_true", help="only check suite, models and options; run nothing")
    parser.add_argument("--detach", action="store_true", help="start it and leave; needs a mesh that runs")
    _reports(parser, json_too=True)


def _drafts(add: Callable[[str, str], argparse.ArgumentParser]) -> None:
    new = add("new", "write a commented scenario file to fill in, or a folder with a suite of one scenario")
    new.add_argument("path", type=Path, help="a .yaml file, or a folder for a whole suite; nothing is overwritten")
    new.add_argument("--language", default="en", metavar="CODE", help="that the customer speaks (default en)")
    dataset = add(
        "from-dataset", "make scenarios out of the held-back conversations of a dataset, never of training rows"
    )
    dataset.add_argument("dataset", help="its name")
    dataset.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder of the new suite")
    dataset.add_argument(
        "--count", type=int, default=20, metavar="N", help="conversations to draw; 0 means all (default 20)"
    )
    dataset.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default 0)")
    dataset.add_argument("--max-turns", type=int, metavar="N", help="customer turns of each (default 8)")
    label = add("from-label", "turn a confirmed break that a tester found into a scenario")
    label.add_argument("defect", help="defects/ID, as the testers' page shows it")
    label.add_argument("--to", type=Path, default=Path(), metavar="DIR", help="folder to write it to (default: here)")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    module, name = ACTIONS[arguments.action].split(":")
    action: Any = getattr(importlib.import_module(f"chatmill.cli.evals.{module}"), name)
    return settings.run_async(action(arguments))
