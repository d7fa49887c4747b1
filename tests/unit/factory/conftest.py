from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

# Models this small train fastest on one thread, and tests share the machine; workers inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

from chatmill.errors import NotFound
from factory_svc.bases import Bases
from factory_svc.examples import Item, Turn
from factory_svc.factory import Factory
from factory_svc.methods.base import seed_everything
from factory_svc.methods.scratch import Scratch
from factory_svc.methods.scratch.config import ScratchParameters
from factory_svc.registry import Registry
from factory_svc.sources import DatasetInfo
from factory_svc.store import JobStore
from factory_svc.task import Messages, TrainingOutcome, TrainingTask
from factory_svc.training import train

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "layers": 2,
    "heads": 2,
    "kv_heads": 1,
    "intermediate_size": 64,
    "vocabulary": 420,
}
SYSTEM = "You are Nia of the shop Lumen."
HANDOVER = '<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "complaint"}}</tool_call>'


def conversation(seed: int) -> Messages:
    rng = random.Random(seed)
    number = rng.randint(10, 99)
    turns = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"Where is order {number}?"},
        {"role": "assistant", "content": f"Order {number} is on its way."},
    ]
    if seed % 3 == 0:
        turns += [{"role": "user", "content": "谢谢"}, {"role": "assistant", "content": "不客气！"}]
    if seed % 5 == 0:
        turns += [{"role": "user", "content": "This is a scandal!"}, {"role": "assistant", "content": HANDOVER}]
    return turns


def conversations(count: int = 24) -> list[Messages]:
    return [conversation(seed) for seed in range(count)]


def items(count: int = 24) -> list[Item]:
    found = []
    for index, messages in enumerate(conversations(count)):
        turns = tuple(Turn(m["role"], m["content"]) for m in messages[1:])
        found.append(Item(f"datasets/shop/items/{index}", turns, facts=("Customer: Ana.",), language="en"))
    return found


class FakeSource:
    """An ItemSource in memory; `gate` holds it up before the first item, and `reached` tells."""

    def __init__(self, found: Sequence[Item]) -> None:
        self.found = list(found)
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()

    async def describe(self, dataset: str) -> DatasetInfo:
        if dataset != "datasets/shop":
            raise NotFound(f"There is no dataset {dataset}.")
        return DatasetInfo(dataset, "digest-of-shop", len(self.found))

    async def training_items(self, dataset: str, languages: Sequence[str]) -> AsyncIterator[Item]:
        self.reached.set()
        if self.gate is not None:
            await self.gate.wait()
        for item in self.found:
            if not languages or item.language in languages:
                yield item


def scratch(output: Path, **parameters: object) -> TrainingOutcome:
    chosen = {**TINY, "epochs": 2, "batch_size": 4, "max_length": 128, "precision": "fp32", **parameters}
    return train(TrainingTask(method="scratch", output=output, conversations=conversations(), parameters=chosen))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Llama of our own with its tokenizer; untrained, since importing a trainer takes seconds."""
    output = tmp_path_factory.mktemp("base") / "tiny-base"
    parameters = ScratchParameters(**TINY)
    method = Scratch()
    seed_everything(0)
    method.save(method.build(parameters, conversations()), parameters, output)
    return output


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(tmp_path / "home")


@pytest.fixture
def bases(registry: Registry, base: Path) -> Bases:
    return Bases(registry, [base.parent])


@pytest.fixture
def source() -> FakeSource:
    return FakeSource(items())


@pytest.fixture
async def factory(tmp_path: Path, registry: Registry, bases: Bases, source: FakeSource) -> AsyncIterator[Factory]:
    home = tmp_path / "home"
    made = Factory(home, JobStore.in_folder(home), registry, bases, source, grace=20)
    await made.start()
    yield made
    await made.close()
