"""`chatmill eval run` and `resume`: the request out of the arguments, the bar meanwhile, the scoreboard at the end."""

from __future__ import annotations

import argparse
import asyncio
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from chatmill import agent
from chatmill.cli import console as consoles
from chatmill.cli import settings
from chatmill.cli.evals import results
from chatmill.cli.meshes import Found, found_or_started
from chatmill.common.v1 import JobState
from chatmill.errors import FailedPrecondition, InvalidArgument
from chatmill.eval.v1 import (
    Evaluation,
    EvaluationSpec,
    GetEvaluationRequest,
    ResumeEvaluationRequest,
    RunEvaluationRequest,
    Target,
)
from chatmill.recipe.evaluation import STEP, first, follow
from chatmill.recipe.mesh import Mesh, connected
from chatmill.recipe.observer import Observer, StepResult
from chatmill.recipe.reading import model_name


async def run(arguments: argparse.Namespace) -> int:
    """Run a suite; returns the exit code of its gate."""
    spec = spec_of(arguments)
    config, console = settings.load(arguments), consoles.stderr()
    roots = _local_folders(arguments)
    async with (
        found_or_started(_with_key(arguments), config, console, services=("eval",), roots=roots) as found,
        connected(found.config, services=("eval",)) as mesh,
    ):
        if found.local and arguments.suite:
            spec.scenario_suite = _resolved(arguments.suite)
        if arguments.check:
            checked = await first(mesh, RunEvaluationRequest(spec=spec, validate_only=True))
            print(f"{checked.suite} ({checked.suite_digest[:12]}): suite, models and options are in order")
            return 0
        request = RunEvaluationRequest(spec=spec, request_id=str(uuid.uuid4()))
        if arguments.detach:
            return await _detach(mesh, found, request)
        with consoles.Steps(console) as shown:
            done = await _follow(mesh, shown, request, "", arguments.suite or "held-back conversations")
        return await results.finish(arguments, mesh, done)


async def resume(arguments: argparse.Namespace) -> int:
    """Follow an evaluation to its end, and take it up if it was broken off; returns the exit code of its gate."""
    config, console = settings.load(arguments), consoles.stderr()
    name = results.evaluation_name(arguments.evaluation)
    async with (
        # a mesh of our own takes up at its start what had not ended when the last one did
        found_or_started(arguments, config, console, services=("eval",)) as found,
        connected(found.config, services=("eval",)) as mesh,
    ):
        known = (await mesh.evals.GetEvaluation(GetEvaluationRequest(name=name))).evaluation
        if known.state not in results.AT_WORK:
            try:
                await mesh.evals.ResumeEvaluation(ResumeEvaluationRequest(name=name))
            except FailedPrecondition as error:
                console.print(f"{error.message}", style="dim", markup=False)
                return await results.finish(arguments, mesh, known)
        with consoles.Steps(console) as shown:
            done = await _follow(mesh, shown, None, name, known.suite or "held-back conversations")
        return await results.finish(arguments, mesh, done)


def spec_of(arguments: argparse.Namespace) -> EvaluationSpec:
    """The request that the arguments ask for.

    Raises:
        InvalidArgument: not exactly one of SUITE and `--replay`, or both `--agent` and `--system`.
        NotFound: no such agent card.
    """
    if bool(arguments.suite) == bool(arguments.replay):
        raise InvalidArgument("name either a SUITE or a dataset with --replay; `chatmill eval suites` lists suites")
    if arguments.agent and arguments.system is not None:
        raise InvalidArgument("--agent and --system both set the system prompt; give one of them")
    spec = EvaluationSpec(
        candidate=target(arguments.model, arguments.key_file),
        trials=arguments.trials,
        seed=arguments.seed,
        concurrency=arguments.concurrency,
        tags=arguments.tag,
        max_output_tokens=arguments.max_tokens,
        temperature=arguments.temperature,
        system_prompt=arguments.system or "",
        latency_turns=arguments.latency_turns,
        stop_early=arguments.stop_early,
    )
    if arguments.replay:
        dataset = arguments.replay
        spec.replay_suite.dataset = dataset if dataset.startswith("datasets/") else f"datasets/{dataset}"
        spec.replay_suite.max_conversations = arguments.max_conversations
    else:
        spec.scenario_suite = arguments.suite
    if arguments.baseline:
        spec.baseline.CopyFrom(target(arguments.baseline, arguments.key_file))
    if arguments.judge:
        spec.judge.target.CopyFrom(target(arguments.judge, arguments.key_file))
        spec.judge.gates = arguments.judge_gates
    if arguments.customer:
        spec.customer.CopyFrom(target(arguments.customer, arguments.key_file))
    if arguments.agent:
        card = agent.load(arguments.agent)
        spec.system_prompt = card.render()
        spec.policies.update({policy.id: policy.text for policy in card.policies})
    if arguments.turn_timeout is not None:
        spec.turn_timeout.FromMicroseconds(round(arguments.turn_timeout * 1e6))
    _gate(arguments, spec)
    return spec


def _gate(arguments: argparse.Namespace, spec: EvaluationSpec) -> None:
    spec.gate.SetInParent()
    for name in ("min_pass_rate", "min_difference", "min_pass_hat_k", "max_critical"):
        value = getattr(arguments, name)
        if value is not None:
            setattr(spec.gate, name, value)
    if arguments.max_p95_ms is not None:
        spec.gate.max_p95_latency.FromMicroseconds(round(arguments.max_p95_ms * 1000))


def target(text: str, key_file: str | None) -> Target:
    """A model of the mesh, or `URL#MODEL` for an OpenAI-compatible access point.

    Raises:
        InvalidArgument: a URL without the name of the model.
    """
    if not text.startswith(("http://", "https://")):
        return Target(model=model_name(text))
    url, _, name = text.partition("#")
    if not name:
        raise InvalidArgument(f"{text}: say which model of this access point, as in {url}#MODEL")
    made = Target(display_name=name)
    made.openai.base_url, made.openai.model = url, name
    # A path from here, unless it is the name of a file in the folder of keys of a mesh that runs.
    made.openai.api_key_file = _resolved(key_file) if key_file else ""
    return made


def _resolved(named: str) -> str:
    """A path from here as one from anywhere; what is no path here is a name there."""
    return str(Path(named).resolve()) if Path(named).exists() else named


def _local_folders(arguments: argparse.Namespace) -> list[Path]:
    """What a mesh of our own may read because the person at the command line named it."""
    if not arguments.suite or not Path(arguments.suite).exists():
        return []
    path = Path(arguments.suite).resolve()
    return [path if path.is_dir() else path.parent]


def _with_key(arguments: argparse.Namespace) -> argparse.Namespace:
    """The same for a mesh of our own, which may send the key that the person named to whom the person named."""
    if not arguments.key_file or not Path(arguments.key_file).exists():
        return arguments
    targets = (arguments.model, arguments.baseline, arguments.judge, arguments.customer)
    hosts = {urlsplit(text).netloc for text in targets if text and text.startswith(("http://", "https://"))}
    own = argparse.Namespace(**vars(arguments))
    own.option = [
        *arguments.option,
        f"eval.key_root={Path(arguments.key_file).resolve().parent}",
        f"eval.trusted_hosts={','.join(sorted(hosts))}",
    ]
    return own


async def _detach(mesh: Mesh, found: Found, request: RunEvaluationRequest) -> int:
    if found.private:
        raise FailedPrecondition(
            "--detach needs a mesh that stays: the one that was started for this command ends with it. "
            "Start one with `chatmill up`."
        )
    accepted = await first(mesh, request)
    print(accepted.name)
    return 0


async def _follow(
    mesh: Mesh, shown: Observer, request: RunEvaluationRequest | None, name: str, what: str
) -> Evaluation:
    shown.began(STEP, what)
    begun = asyncio.get_running_loop().time()
    done = await follow(
        mesh,
        shown,
        request,
        name=name,
        left=lambda known: f"{known} keeps what it has; `chatmill eval resume {results.short(known)}` goes on",
    )
    took = asyncio.get_running_loop().time() - begun
    shown.ended(StepResult(STEP, f"{done.name}: {_state(done)}", reused=False, seconds=took))
    return done


def _state(evaluation: Evaluation) -> str:
    if evaluation.state == JobState.JOB_STATE_SUCCEEDED:
        seen = evaluation.candidate
        return f"{seen.pass_rate:.1%} of {seen.scenario_count} scenarios passed"
    return results.STATES.get(int(evaluation.state), "ended")
