"""Builds a Llama from sizes, trains every weight of it and saves a complete model folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from chatmill.imports import import_bitsandbytes
from factory_svc.methods.base import METHODS, Loop, Trainable, seed_everything
from factory_svc.methods.parameters import Parameters
from factory_svc.methods.scratch.config import ScratchParameters
from factory_svc.task import Messages, TrainingOutcome, TrainingTask


class Scratch:
    """A new base model from conversations alone."""

    name = "scratch"
    summary = "Train a new Llama-architecture model with its own byte-level BPE tokenizer, all weights, from the data."
    parameters: type[Parameters] = ScratchParameters
    kind = "base"
    needs_base = False

    def run(
        self,
        task: TrainingTask,
        parameters: ScratchParameters,
        conversations: list[Messages],
        folder: Path,
        loop: Loop,
    ) -> TrainingOutcome:
        """See `TrainingMethod.run`."""
        import_bitsandbytes()
        seed_everything(task.seed)
        built = self.build(parameters, conversations)
        outcome = loop.fit(built, task, parameters, conversations)
        self.save(built, parameters, folder)
        return dataclasses.replace(outcome, kind=self.kind)

    def build(self, parameters: ScratchParameters, conversations: list[Messages]) -> Trainable:
        """A freshly initialised model and its tokenizer, or those that `weights` names."""
        from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

        from factory_svc.loading import load_model
        from factory_svc.methods.scratch.tokenizer import load_tokenizer, train_tokenizer

        if parameters.weights:
            known = load_model(parameters.weights).float()  # all weights are trained, which bf16 is too coarse for
            return Trainable(known, load_tokenizer(parameters.weights), ["Goes on from given weights."])
        if parameters.tokenizer:
            tokenizer = load_tokenizer(parameters.tokenizer)
        else:
            tokenizer = train_tokenizer(conversations, parameters.vocabulary, parameters.max_positions)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=parameters.hidden_size,
            intermediate_size=parameters.intermediate_size,
            num_hidden_layers=parameters.layers,
            num_attention_heads=parameters.heads,
            num_key_value_heads=parameters.kv_heads,
            max_position_embeddings=parameters.max_positions,
            rope_parameters={"rope_type": "default", "rope_theta": parameters.rope_theta},
            tie_word_embeddings=parameters.tie_embeddings,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        model = LlamaForCausalLM(config)
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            do_sample=False,
        )
        note = f"New tokenizer with {len(tokenizer)} tokens." if not parameters.tokenizer else "Given tokenizer."
        return Trainable(model, tokenizer, [note])

    def save(self, built: Trainable, parameters: ScratchParameters, folder: Path) -> None:
        """Write config, weights (safetensors), tokenizer and template."""
        import torch

        built.model.to(getattr(torch, parameters.save_dtype)).save_pretrained(folder)
        built.tokenizer.save_pretrained(folder)


METHODS.register(Scratch.name)(Scratch())
