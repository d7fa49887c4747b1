"""What a training method is, and the table of them.

A method is a folder `methods/<name>/` with `config.py` (its parameters) and `method.py` (how the model is built and
what is saved). The loop in `factory_svc.loop` is the same for all that train weights. Machine-learning libraries
are imported inside functions, so that the service starts in a blink and lists its methods without them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from chatmill.plugins import Registry
from factory_svc.methods.parameters import GradientParameters, Parameters
from factory_svc.task import Messages, Report, TrainingOutcome, TrainingTask


@dataclass(slots=True)
class Trainable:
    """A model that is ready for the loop.

    Attributes:
        model: a `PreTrainedModel` or `PeftModel` with `requires_grad` set on exactly what is to be trained.
        tokenizer: the tokenizer that the model will be served with.
        notes: what a person should know about how it was built.
    """

    model: Any
    tokenizer: Any
    notes: list[str] = field(default_factory=list)


@runtime_checkable
class TrainingMethod(Protocol):
    """A way to make a model out of conversations."""

    @property
    def name(self) -> str:
        """The name by which requests choose it."""

    @property
    def summary(self) -> str:
        """One sentence for `ListTrainingMethods`."""

    @property
    def parameters(self) -> type[Parameters]:
        """Its parameter dataclass."""

    @property
    def kind(self) -> str:
        """Kind of registry entry that it makes: base, adapter or prompt."""

    @property
    def needs_base(self) -> bool:
        """Whether a base model must be named."""

    def run(
        self, task: TrainingTask, parameters: Any, conversations: list[Messages], folder: Path, loop: Loop
    ) -> TrainingOutcome:
        """Do the work and leave the files in `folder`, which exists and is empty.

        Args:
            task: the whole task.
            parameters: an instance of `parameters`.
            conversations: what to learn from, not empty.
            folder: where to save; it is renamed to `task.output` afterwards.
            loop: what trains weights and reports progress.
        """


class Loop(Protocol):
    """The one training loop, as methods see it."""

    @property
    def report(self) -> Report:
        """Tells the caller of the training where it stands."""

    def fit(
        self, built: Trainable, task: TrainingTask, parameters: GradientParameters, conversations: list[Messages]
    ) -> TrainingOutcome:
        """Train `built.model` in place and say what happened; `kind` and `contract` are still to be filled in."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch. A method calls it before it draws fresh weights; the trainer seeds only itself."""
    from transformers import set_seed

    set_seed(seed)


METHODS: Registry[TrainingMethod] = Registry("training method", "chatmill.methods")
"""Every installed training method."""
