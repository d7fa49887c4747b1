"""Does an evaluation keep its endpoint busy? The same turns through `RunEvaluation`, and from a bare load generator.

    python -m benchmarks.evaluate [--quick] [--json FILE] [--scenarios 200] [--turns 4] [--concurrency 8]

Starts a mesh of its own and plays the same made-up dialogues with chatmill-tiny in turn: `load` sends the turns of each
dialogue one after the other, so many dialogues at once, and does nothing with the replies; `evaluate` is a run of the
eval service with checks on every turn, its events streamed to a client. Greedy, so both get the same replies. The ratio
is that of the medians over the rounds, after one round of each to warm up. Client and services share the cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.sides.rounds import machine
from chatmill.common.v1 import Message, Role
from chatmill.eval.v1 import EvalServiceStub, EvaluationSpec, RunEvaluationRequest, Target
from chatmill.inference.v1 import GenerateRequest, GenerationSpec, InferenceServiceStub, Sampling
from chatmill.runtime import channel, endpoint

MODEL = "models/chatmill-tiny"
SYSTEM = "You are Mila, the assistant of a small online shop. Be brief."
BAR = 1.25
QUESTIONS = (
    "Where is my order {n}?",
    "How long can I return the lamp that I bought on day {n}?",
    "Can you tell me what shipping costs for {n} items?",
    "My name is Ana and my number is {n}. What is my number?",
    "Do you have article {n} in blue?",
    "Thanks! And how long does delivery take for article {n}?",
)


@dataclass(slots=True)
class Result:
    """What one side took: seconds of each round, turns and dialogues of one."""

    side: str
    seconds: list[float] = field(default_factory=list)
    turns: int = 0
    dialogues: int = 0

    @property
    def median(self) -> float:
        """Median seconds."""
        return statistics.median(self.seconds)


def dialogues(count: int, turns: int) -> list[list[str]]:
    """What the customers say."""
    draw = random.Random(0)
    return [[draw.choice(QUESTIONS).format(n=draw.randint(100, 9999)) for _ in range(turns)] for _ in range(count)]


def write_suite(folder: Path, said: list[list[str]]) -> Path:
    """The dialogues as a suite with checks such as people write."""
    checks = {
        "expect": [
            {"type": "contains_any", "value": ["order", "day", "shop", "help", "number"], "gate": "soft"},
            {"type": "number", "value": 30, "unit": ["day", "days"], "only": True, "gate": "soft"},
            {"type": "length", "max_words": 200, "gate": "soft"},
        ],
        "forbid": [{"type": "regex", "value": r"\b(guarantee|lifetime|refunded)\b", "gate": "soft"}],
    }
    (folder / "scenarios").mkdir(parents=True)  # JSON is YAML, and shares no lists, which scenario files may not
    for number, user in enumerate(said):
        turns = [{"user": text, **checks} for text in user]
        data = {"schema": 1, "id": f"s{number:03}", "kind": "happy", "turns": turns}
        (folder / "scenarios" / f"s{number:03}.yaml").write_text(json.dumps(data))
    suite = {"schema": 1, "id": "bench", "version": "1", "scenarios": ["scenarios/*.yaml"]}
    (folder / "suite.yaml").write_text(json.dumps(suite))
    return folder


@contextmanager
def mesh(home: Path, roots: Path) -> Iterator[dict[str, str]]:
    """A mesh of its own; service to address."""
    services = ("dataset", "factory", "inference", "eval")
    options = [part for name in services for part in ("-o", f"{name}.port=0")]
    command = [
        sys.executable,
        "-m",
        "chatmill.cli",
        "up",
        "--services",
        ",".join(services),
        "--home",
        str(home),
        *options,
    ]
    log = home.parent / "up.log"
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "-o", f"eval.suite_roots={roots}"], stdout=subprocess.PIPE, stderr=out)
        assert process.stdout
        try:
            if not any(b"The mesh is up" in line for line in process.stdout):
                raise SystemExit(f"the mesh did not start:\n{log.read_text()}")
            found = {name: endpoint.read(home, name) for name in services}
            yield {name: there.target for name, there in found.items() if there is not None}
        finally:
            process.terminate()
            process.wait(60)


async def load(stub: InferenceServiceStub, said: list[list[str]], concurrency: int, tokens: int) -> int:
    """All dialogues, so many at once; returns how many turns were answered."""
    todo, answered = iter(said), 0

    async def one(user: list[str]) -> int:
        messages, count = [Message(role=Role.ROLE_SYSTEM, content=SYSTEM)], 0
        for text in user:
            messages.append(Message(role=Role.ROLE_USER, content=text))
            sampling = Sampling(max_output_tokens=tokens, temperature=0.0)
            request = GenerateRequest(spec=GenerationSpec(model=MODEL, messages=messages, sampling=sampling))
            reply, handed = "", False
            async for answer in stub.Generate(request):
                event = answer.event
                if event.HasField("delta"):
                    reply = reply[: event.delta.character_offset] + event.delta.text
                elif event.HasField("retracted"):
                    reply = reply[: event.retracted.from_character_offset]
                handed = handed or event.HasField("handoff")
            count += 1
            if handed or not reply.strip():  # an evaluation ends the dialogue there, too
                break
            messages.append(Message(role=Role.ROLE_ASSISTANT, content=reply))
        return count

    async def work() -> None:
        nonlocal answered
        for user in todo:
            count = await one(user)
            answered += count

    await asyncio.gather(*(work() for _ in range(concurrency)))
    return answered


async def evaluate(stub: EvalServiceStub, suite: Path, concurrency: int, tokens: int) -> tuple[int, int]:
    """One run of the eval service; turns answered and dialogues played."""
    spec = EvaluationSpec(
        scenario_suite=str(suite),
        candidate=Target(model=MODEL),
        trials=1,
        concurrency=concurrency,
        system_prompt=SYSTEM,
        max_output_tokens=tokens,
        latency_turns=0,
    )
    turns = done = 0
    async for answer in stub.RunEvaluation(RunEvaluationRequest(spec=spec), timeout=3600):
        if answer.event.HasField("trial"):
            done += 1
            turns += len(answer.event.trial.turns)
    return turns, done


async def measure(
    addresses: dict[str, str], suite: Path, said: list[list[str]], arguments: argparse.Namespace
) -> list[Result]:
    """Both sides in turn."""
    sides = [Result("load"), Result("evaluate")]
    async with channel.connect(addresses["inference"]) as one, channel.connect(addresses["eval"]) as two:
        inference, evals = InferenceServiceStub(one), EvalServiceStub(two)
        for number in range(-1, arguments.rounds):
            for side in sides:
                begun = time.perf_counter()
                if side.side == "load":
                    side.turns = await load(inference, said, arguments.concurrency, arguments.tokens)
                    side.dialogues = len(said)
                else:
                    side.turns, side.dialogues = await evaluate(evals, suite, arguments.concurrency, arguments.tokens)
                took = time.perf_counter() - begun
                if number >= 0:
                    side.seconds.append(round(took, 3))
                told = "warm-up" if number < 0 else f"round {number + 1}"
                print(f"{told:8} {side.side:9} {took:7.2f} s {side.turns:5} turns", flush=True)
    return sides


def main() -> int:
    """Run the benchmark; 1 if the evaluation takes more than `BAR` times as long, or other turns were played."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--turns", type=int, default=4, help="of each; default: %(default)s")
    parser.add_argument("--concurrency", type=int, default=8, help="dialogues at once; default: %(default)s")
    parser.add_argument("--tokens", type=int, default=48, help="at most so many a reply; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="of each side; default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="20 scenarios and one round, for trying the program out")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.scenarios, arguments.rounds = 20, 1
    said = dialogues(arguments.scenarios, arguments.turns)
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        suite = write_suite(Path(scratch) / "suite", said)
        with mesh(Path(scratch) / "home", Path(scratch)) as addresses:
            sides = asyncio.run(measure(addresses, suite, said, arguments))
    bare, evaluated = sides
    ratio = evaluated.median / bare.median
    same = bare.turns == evaluated.turns
    print(f"evaluate / load: {ratio:.2f} (bar {BAR}); {evaluated.turns} turns of {evaluated.dialogues} dialogues")
    if not same:
        print(f"error: {bare.turns} turns in the load generator, {evaluated.turns} in the evaluation", file=sys.stderr)
    if arguments.json:
        figures = {
            "machine": machine(),
            "cores": os.cpu_count(),
            "ratio": round(ratio, 3),
            "bar": BAR,
            "concurrency": arguments.concurrency,
            "sides": [asdict(side) for side in sides],
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    return int(ratio > BAR or not same)


if __name__ == "__main__":
    sys.exit(main())
