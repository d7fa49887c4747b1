"""What all rows begin with is read once, and without dropout neither loss nor gradients know the difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    OpenAIGPTConfig,
    OpenAIGPTModel,
    Qwen2Config,
    Qwen2Model,
)

from factory_svc.lean import last_hidden

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def _rows(lengths: list[int], shared: int, first_counted: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows that begin alike, padded on the right; counted is what predicts a token from `first_counted` on."""
    torch.manual_seed(0)
    ids = torch.randint(1, 50, (len(lengths), max(lengths)))
    ids[:, :shared] = ids[0, :shared].clone()
    if len(lengths) > 1 and shared < min(lengths):
        ids[:, shared] = torch.arange(len(lengths)) + 1
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()
    counted = (torch.arange(ids.shape[1] - 1) + 1 >= first_counted) & mask[:, 1:].bool()
    return ids, mask, counted


def _gradients(model: torch.nn.Module, hidden: torch.Tensor, counted: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (hidden[:, :-1][counted] ** 2).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model)])
@pytest.mark.parametrize(
    ("lengths", "shared", "first_counted", "read"),
    [
        ([50, 61, 45], 40, 42, 40),
        ([50, 61, 45], 40, 40, 39),  # the prefix's last position predicts what counts
        ([50, 61, 45], 40, 5, 0),  # too little of it counts nothing
        ([50, 61, 45], 31, 42, 0),  # it would save too little
        ([90, 90], 90, 85, 84),  # the same conversation twice
        ([70, 91], 70, 72, 70),  # a row that is nothing else
        ([130], 120, 122, 0),
    ],
)
def test_a_shared_prefix_is_read_once(
    family: tuple[Any, Any], attention: str, lengths: list[int], shared: int, first_counted: int, read: int
) -> None:
    config, kind = family
    model = kind(config(**SIZES, attn_implementation=attention)).train()
    ids, mask, counted = _rows(lengths, shared, first_counted)
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    expected = _gradients(model, whole, counted)
    hidden, apart = last_hidden(model, ids, mask, counted)
    assert apart == read
    assert hidden.shape[1] == ids.shape[1] - read
    real = mask[:, read:].bool()
    torch.testing.assert_close(hidden[real], whole[:, read:][real], rtol=1e-4, atol=1e-5)
    found = _gradients(model, hidden, counted[:, read:])
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "model",
    [
        MistralModel(MistralConfig(**SIZES, sliding_window=16)),
        LlamaModel(LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})),
        OpenAIGPTModel(OpenAIGPTConfig(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4)),
    ],
    ids=["windows", "rotations of the length", "no cache"],
)
def test_models_in_which_a_prefix_read_apart_is_another_read_every_row_whole(model: Any) -> None:
    model.eval()
    ids, mask, counted = _rows([50, 61, 45], 40, 42)
    hidden, apart = last_hidden(model, ids, mask, counted)
    assert apart == 0
    torch.testing.assert_close(hidden, model(input_ids=ids, attention_mask=mask).last_hidden_state)
