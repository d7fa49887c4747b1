"""Loads a base, freezes it, trains low-rank adapters and saves only those."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path
from typing import Any

from chatmill.errors import InvalidArgument
from chatmill.imports import import_bitsandbytes
from factory_svc.methods.base import METHODS, Loop, Trainable, seed_everything
from factory_svc.methods.lora.config import LoraParameters
from factory_svc.methods.parameters import Parameters
from factory_svc.task import Messages, Progress, TrainingOutcome, TrainingTask


class Lora:
    """Low-rank adapters; the base stays as it is and can serve many adapters at once."""

    name = "lora"
    summary = "Train low-rank adapters (LoRA) on a frozen base model; the result is a small adapter."
    parameters: type[Parameters] = LoraParameters
    kind = "adapter"
    needs_base = True

    def run(
        self, task: TrainingTask, parameters: LoraParameters, conversations: list[Messages], folder: Path, loop: Loop
    ) -> TrainingOutcome:
        """See `TrainingMethod.run`."""
        loop.report(Progress(phase="loading", note=f"Loading the base {task.base}."))
        import_bitsandbytes()
        seed_everything(task.seed)
        built = self.build(task, parameters)
        outcome = loop.fit(built, task, parameters, conversations)
        self.save(built, parameters, folder)
        return dataclasses.replace(outcome, kind=self.kind)

    def build(self, task: TrainingTask, parameters: LoraParameters) -> Trainable:
        """The base with fresh adapters on it."""
        from factory_svc.loading import load_tokenizer

        model, notes = self.load(task)
        return Trainable(adapt(model, parameters), load_tokenizer(task.base or "", task.base_revision), notes)

    def load(self, task: TrainingTask) -> tuple[Any, list[str]]:
        """The frozen base in fp32 on CPU (bf16 comes from autocast) and in bf16 on CUDA."""
        from factory_svc.loading import load_model

        return load_model(task.base or "", task.base_revision), []

    def save(self, built: Trainable, parameters: LoraParameters, folder: Path) -> None:
        """Write the adapter (safetensors) and its config; the tokenizer stays with the base."""
        import torch

        dtype = getattr(torch, parameters.save_dtype)
        for weight in built.model.parameters():
            if weight.requires_grad:
                weight.data = weight.data.to(dtype)
        built.model.save_pretrained(folder)


def adapt(model: Any, parameters: LoraParameters) -> Any:
    """`model` wrapped with fresh adapters.

    Raises:
        InvalidArgument: none of the named layers exists in the model, or it has fewer blocks than are to be adapted.
    """
    from peft import LoraConfig, get_peft_model

    every = parameters.targets() == "all-linear"
    blocks = int(model.config.get_text_config().num_hidden_layers)
    if parameters.last_blocks > blocks:
        raise InvalidArgument.field("parameters.last_blocks", f"the base has {blocks} blocks")
    config = LoraConfig(
        r=parameters.rank,
        lora_alpha=parameters.alpha,
        lora_dropout=parameters.dropout,
        target_modules=_linear_layers(model) if parameters.last_blocks and every else parameters.targets(),
        layers_to_transform=list(range(blocks - parameters.last_blocks, blocks)) if parameters.last_blocks else None,
        use_rslora=parameters.rank_stabilised,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # PEFT asks for a property of transformers by its old name, which is nothing that a user could mend.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise InvalidArgument.field("parameters.target_modules", str(error).splitlines()[0]) from None


def _linear_layers(model: Any) -> list[str]:
    """What PEFT means by `all-linear`, by name, since it takes single blocks only with names."""
    import torch

    head = model.get_output_embeddings()
    found = (name for name, part in model.named_modules() if isinstance(part, torch.nn.Linear) and part is not head)
    return sorted({name.rpartition(".")[2] for name in found})


METHODS.register(Lora.name)(Lora())
