"""A training task and what comes of it, as plain data that can cross a process boundary.

Nothing here knows of jobs, of the registry or of any machine-learning library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatmill.errors import InvalidArgument, NotFound

Message = dict[str, str]
"""One turn for the chat template: `role` is system, user, assistant or tool; `content` is its text."""
Messages = list[Message]
"""One conversation, in order, that ends on an assistant turn."""

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, kw_only=True)
class TrainingTask:
    """What one worker is asked to do.

    Attributes:
        method: name of a registered training method.
        parameters: the method's parameters, checked against its dataclass before any work.
        output: folder that the result becomes, by one rename at the very end; it must not exist.
        data: JSONL file with one `{"messages": [...]}` per line (a .gz is read too).
        conversations: the same in memory, for callers in this process; wins over `data`.
        base: folder of a Hugging Face model, or a hub id; None for methods that need none.
        base_revision: commit of the hub id; ignored for a folder.
        system_prompt: what the prompt method keeps; weight methods find it in the messages.
        seed: seeds weights, adapters, shuffling and dropout.
        checkpoints: folder for checkpoints; default is beside `output`. It outlives an interrupted task.
        resume: continue from the newest checkpoint in `checkpoints`.
    """

    method: str
    output: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    data: Path | None = None
    conversations: Sequence[Messages] | None = None
    base: str | None = None
    base_revision: str | None = None
    system_prompt: str = ""
    seed: int = 0
    checkpoints: Path | None = None
    resume: bool = False

    def to_json(self) -> str:
        """The task for a worker's command file. Raises ValueError if the conversations are in memory."""
        if self.conversations is not None:
            raise ValueError("a task for another process names its data by file")
        return json.dumps(
            {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}, ensure_ascii=False
        )

    @classmethod
    def from_json(cls, text: str) -> TrainingTask:
        """The task that `to_json` wrote."""
        values: dict[str, Any] = json.loads(text)
        for name in ("output", "data", "checkpoints"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return cls(**values)

    def checkpoint_folder(self) -> Path:
        """Where checkpoints of this task lie."""
        return self.checkpoints or self.output.with_name(self.output.name + ".checkpoints")


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a running task stands.

    Attributes:
        step: optimiser steps done.
        total_steps: optimiser steps planned.
        loss: mean training loss (nats per counted token) since the report before.
        tokens_per_second: tokens seen by the model per second since the report before, padding not counted.
        seconds_left: estimate from the mean speed since the first report; None in that.
        learning_rate: rate at this step.
        epoch: passes over the data so far.
        phase: `training`, or what happens before and after it, such as `loading` and `saving`.
        note: one sentence worth showing to a person, or empty.
    """

    step: int = 0
    total_steps: int = 0
    loss: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None
    phase: str = "training"
    note: str = ""


Report = Callable[[Progress], None]
"""Called in the thread that trains; must return quickly."""
ShouldStop = Callable[[], bool]
"""Asked after every optimiser step; True makes the loop write a checkpoint and stop."""


@dataclass(frozen=True, slots=True)
class DataCounters:
    """What became of the data; nothing is dropped or cut without standing here.

    Attributes:
        examples_read: conversations offered.
        examples_trained: conversations that the loop trains on.
        truncated: conversations cut at max_length.
        dropped_over_length: left out because they were longer than max_length.
        dropped_no_target: left out because no token in them was to be learned (after cutting, too).
        tokens: tokens in the trained conversations, per pass.
        target_tokens: those of them that the loss sees.
        masked_tokens: those of them that only serve as context.
        tokens_cut: tokens lost by truncation.
        tool_messages_skipped: turns of tools left out because the chat template has no role for them.
    """

    examples_read: int = 0
    examples_trained: int = 0
    truncated: int = 0
    dropped_over_length: int = 0
    dropped_no_target: int = 0
    tokens: int = 0
    target_tokens: int = 0
    masked_tokens: int = 0
    tokens_cut: int = 0
    tool_messages_skipped: int = 0


@dataclass(frozen=True, slots=True)
class TrainingOutcome:
    """What a finished task left behind; the stuff of a registry entry.

    Attributes:
        kind: `base`, `adapter` or `prompt`.
        output: folder with the files; empty folder for a prompt.
        parameters: every parameter with the value that held.
        data: what became of the data.
        steps: optimiser steps made.
        epochs: passes made.
        first_loss: mean loss of the first report; None for a prompt.
        final_loss: mean loss over the last tenth of the steps; None for a prompt.
        tokens_trained: tokens seen over all passes.
        seconds: wall time of the loop alone.
        precision: `fp32` or `bf16`, or empty for a prompt.
        trainable_parameters: number of weights that were trained.
        total_parameters: number of weights of the model.
        prompt: for kind `prompt`: `system_prompt` and `examples`, a list of `{user, assistant}`.
        environment: versions and device.
        notes: what a person should know, one sentence each.
    """

    kind: str
    output: Path
    parameters: dict[str, Any]
    data: DataCounters
    steps: int = 0
    epochs: float = 0.0
    first_loss: float | None = None
    final_loss: float | None = None
    tokens_trained: int = 0
    seconds: float = 0.0
    precision: str = ""
    trainable_parameters: int = 0
    total_parameters: int = 0
    prompt: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {**asdict(self), "output": str(self.output), "notes": list(self.notes)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingOutcome:
        """What `to_dict` made."""
        known = dict(values)
        known["output"] = Path(known["output"])
        known["data"] = DataCounters(**known["data"])
        known["notes"] = tuple(known["notes"])
        return cls(**known)


def read_conversations(task: TrainingTask) -> list[Messages]:
    """The task's conversations.

    Raises:
        NotFound: the data file is missing.
        InvalidArgument: there is no data, or a line is not a conversation; names file and line.
    """
    if task.conversations is not None:
        found = list(task.conversations)
    elif task.data is None:
        raise InvalidArgument.field("data", "a task needs `data` or `conversations`")
    else:
        found = list(_read_jsonl(task.data))
    if not found:
        where = f" in {task.data}" if task.data else ""
        raise InvalidArgument(f"There is not one conversation to train on{where}.", reason="EMPTY_DATASET")
    return found


def _read_jsonl(path: Path) -> Iterator[Messages]:
    import gzip

    if not path.is_file():
        raise NotFound(f"Training data {path} does not exist.", reason="DATA_NOT_FOUND")
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield _messages(line, f"{path}:{number}")


def _messages(line: str, where: str) -> Messages:
    try:
        messages = json.loads(line)["messages"]
    except (ValueError, TypeError, KeyError):
        raise InvalidArgument(f'{where}: expected {{"messages": [...]}}.', reason="MALFORMED_EXAMPLE") from None
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and m.get("role") in ROLES and isinstance(m.get("content"), str) for m in messages
    ):
        raise InvalidArgument(
            f"{where}: every message needs a role ({', '.join(ROLES)}) and a text as content.",
            reason="MALFORMED_EXAMPLE",
        )
    return messages
