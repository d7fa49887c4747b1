"""Makes chatmill-tiny from its recipe: `python -m samples.base.build`. Corpus, tokenizer, weights and registry entry.

A model with the same words but other bits may come out on another machine, because arithmetic differs; the entry says
on which machine the shipped one was made.
"""

import argparse
import hashlib
import json
import multiprocessing
import shutil
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any

import yaml

from factory_svc.shipped import FOLDER
from factory_svc.task import Messages, Progress, TrainingOutcome, TrainingTask
from factory_svc.training import train
from samples.base.corpus import BLOCK, Mixture, block

SHIPPED = FOLDER / "chatmill-tiny"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)
MOST_BYTES = 16 * 2**20
"""The package carries the model, so it must stay small."""


def corpus_digest(made: Iterable[Messages]) -> str:
    """SHA-256 (hexadecimal) over the conversations as JSON lines."""
    digest = hashlib.sha256()
    for messages in made:
        digest.update(json.dumps(messages, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def corpus(wanted: dict[str, Any], count: int | None = None) -> list[Messages]:
    """The conversations that a recipe asks for, made by all processors.

    Args:
        wanted: the recipe's `corpus`: conversations, seed and the fields of `Mixture`.
        count: how many, instead of that number.
    """
    mixture = Mixture(**{key: value for key, value in wanted.items() if key not in ("conversations", "seed")})
    total: int = count or wanted["conversations"]
    blocks = range(0, total, BLOCK)
    # Spawned, because a caller may hold threads and libraries that do not live through a fork.
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        made = pool.map(
            block,
            (first // BLOCK for first in blocks),
            (min(BLOCK, total - first) for first in blocks),
            repeat(wanted["seed"]),
            repeat(mixture),
        )
        return [messages for some in made for messages in some]


def entry(outcome: TrainingOutcome, seed: int, loss_on: str, digest: str, finished: datetime) -> dict[str, Any]:
    """The registry entry: what is worth knowing of the data and the training, keys as in the registry file."""
    return {
        "kind": "base",
        "license": "Apache-2.0",
        "description": "6M-parameter Llama for English and Chinese customer service, made from invented conversations.",
        "created": finished,
        "created_by": "samples.base.build",
        "data": {
            "dataset": "datasets/chatmill-tiny-corpus",
            "examples_digest": digest,
            "examples_seen": outcome.data.examples_trained,
            "items": outcome.data.examples_read,
            "truncated": outcome.data.truncated,
            "trained_tokens": outcome.data.target_tokens,
        },
        "training": {
            "method": "scratch",
            "parameters": outcome.parameters,
            "seed": seed,
            "loss_on": loss_on,
            "precision": outcome.precision,
            "steps": outcome.steps,
            "epochs": outcome.epochs,
            "first_loss": outcome.first_loss,
            "final_loss": outcome.final_loss,
            "tokens": outcome.tokens_trained,
            "seconds": outcome.seconds,
            "notes": list(outcome.notes),
        },
        "environment": outcome.environment,
    }


def install(trained: Path, described: dict[str, Any], target: Path) -> None:
    """Copy the model from `trained` to `target` and write its entry.

    Raises:
        ValueError: the model is larger than the package may be.
    """
    size = sum((trained / name).stat().st_size for name in FILES)
    if size > MOST_BYTES:
        raise ValueError(f"{trained} has {size} bytes, more than {MOST_BYTES}; lower vocabulary, layers or hidden_size")
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        shutil.copyfile(trained / name, target / name)
        (target / name).chmod(0o644)
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True, width=120)
    (target / "entry.yaml").write_text(f"# Written by samples.base.build.\n{text}", encoding="utf-8")


def _show(progress: Progress) -> None:
    done = f"{progress.step}/{progress.total_steps}" if progress.total_steps else progress.phase
    loss = f" loss {progress.loss:.3f}" if progress.loss is not None else ""
    left = f" {progress.seconds_left:.0f} s left" if progress.seconds_left is not None else ""
    sys.stderr.write(f"{done}{loss}{left} {progress.note}\n")


def build(recipe: dict[str, Any], output: Path, count: int | None = None) -> None:
    """Make the corpus, train, and install what came out.

    Args:
        recipe: `seed`, `corpus` and the method's `parameters`.
        output: where the model goes.
        count: size of the corpus instead of the recipe's.
    """
    made = corpus(recipe["corpus"], count)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as work:
        task = TrainingTask(
            method="scratch",
            parameters=recipe["parameters"],
            output=Path(work).resolve() / "model",
            conversations=made,
            seed=recipe["seed"],
        )
        outcome = train(task, _show)
        finished = datetime.now(UTC).replace(microsecond=0)
        loss_on = recipe["parameters"]["loss_on"]
        install(task.output, entry(outcome, recipe["seed"], loss_on, corpus_digest(made), finished), output)


def main() -> None:
    """Build the model and put it in its place."""
    parser = argparse.ArgumentParser(prog="samples.base.build", description=__doc__)
    parser.add_argument("--recipe", type=Path, default=SHIPPED / "recipe.yaml", help="what to build")
    parser.add_argument("--output", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--conversations", type=int, help="size of the corpus instead of the recipe's, to try it out")
    options = parser.parse_args()
    recipe: dict[str, Any] = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    build(recipe, options.output, options.conversations)


if __name__ == "__main__":
    main()
