"""Writes a job's examples to the file that its worker reads, and says what became of the items."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from chatmill.errors import FailedPrecondition
from factory_svc.examples import ExampleCounters, Item, to_messages
from factory_svc.jobs import JobSpec
from factory_svc.sources import DatasetInfo


@dataclass(frozen=True, slots=True)
class Prepared:
    """The data of a job.

    Attributes:
        dataset: where it comes from.
        file: JSONL with one `{"messages": [...]}` per line.
        digest: SHA-256 of the file.
        counters: what became of the items.
    """

    dataset: DatasetInfo
    file: Path
    digest: str
    counters: ExampleCounters

    def warnings(self) -> Iterator[str]:
        """What was left out, one sentence each."""
        for reason, count in self.counters.dropped.items():
            yield f"{count} of {self.counters.read} conversations left out: {reason}."

    def notes(self) -> Iterator[str]:
        """What was changed, one sentence each."""
        for reason, count in self.counters.changed.items():
            yield f"{count} of {self.counters.read} conversations: {reason}."


async def write_examples(
    spec: JobSpec, dataset: DatasetInfo, items: AsyncIterator[Item], file: Path, between: Callable[[], None]
) -> Prepared:
    """Make the examples.

    Args:
        spec: system prompt, languages, treatment of tool messages.
        dataset: what the items are of.
        items: the training items.
        file: where to write.
        between: called after each item; may raise to stop.

    Raises:
        FailedPrecondition: reason `NOTHING_TO_TRAIN`; no item gave an example.
    """
    counters, digest = ExampleCounters(), hashlib.sha256()
    with file.open("wb") as stream:
        async for item in items:
            messages = to_messages(item, spec.system_prompt, counters, spec.tool_messages)
            if messages is not None:
                line = json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"
                stream.write(line)
                digest.update(line)
            between()
    if not counters.written:
        raise FailedPrecondition(
            f"None of the {counters.read} training items of {spec.dataset} in the languages asked for "
            f"({', '.join(spec.languages) or 'all'}) holds an assistant turn to learn from.",
            reason="NOTHING_TO_TRAIN",
        )
    return Prepared(dataset, file, digest.hexdigest(), counters)
