"""LoRA on a base that bitsandbytes holds in 4 bits, on CUDA and on CPU alike."""

from __future__ import annotations

from typing import Any

from factory_svc.methods.base import METHODS, Trainable
from factory_svc.methods.lora.config import LoraParameters
from factory_svc.methods.lora.method import Lora, adapt
from factory_svc.methods.parameters import Parameters
from factory_svc.methods.qlora.config import QLoraParameters
from factory_svc.task import TrainingTask


class QLora(Lora):
    """Adapters for a base that would not fit, or is to be served, in 4 bits."""

    name = "qlora"
    summary = "Train LoRA adapters on a base quantised to 4 bits (bitsandbytes NF4); a quarter of the memory."
    parameters: type[Parameters] = QLoraParameters

    def build(self, task: TrainingTask, parameters: LoraParameters) -> Trainable:
        """The quantised base with fresh adapters on it."""
        from factory_svc.loading import load_tokenizer

        assert isinstance(parameters, QLoraParameters)
        model = self.load_quantised(task, parameters)
        tokenizer = load_tokenizer(task.base or "", task.base_revision)
        note = f"Base held in 4 bits ({parameters.quantisation}), computing in bfloat16."
        return Trainable(adapt(model, parameters), tokenizer, [note])

    def load_quantised(self, task: TrainingTask, parameters: QLoraParameters) -> Any:
        """The base in 4 bits, its norms in fp32 as PEFT recommends."""
        import torch
        from peft import prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        from factory_svc.loading import load_model

        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=parameters.quantisation,
            bnb_4bit_use_double_quant=parameters.double_quantisation,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = load_model(task.base or "", task.base_revision, quantisation=config)
        # Activation checkpointing trades time for memory that a CPU or a small model has.
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


METHODS.register(QLora.name)(QLora())
