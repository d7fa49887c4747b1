"""What all rows begin with is read once, and neither loss nor gradients know the difference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, MistralConfig, MistralModel, Qwen2Config, Qwen2Model

from factory_svc.lean import last_hidden

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_implementation": "eager",
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


@pytest.mark.parametrize("family", [(LlamaConfig, LlamaModel), (Qwen2Config, Qwen2Model)])
@pytest.mark.parametrize(
    ("lengths", "shared", "first_counted", "read"),
    [
        ([30, 41, 25], 20, 22, 20),
        ([30, 41, 25], 20, 20, 19),  # the prefix's last position predicts what counts
        ([30, 41, 25], 20, 5, 0),  # too little of it counts nothing
        ([30, 41, 25], 3, 10, 0),
        ([30, 30], 30, 25, 24),  # the same conversation twice
        ([12, 41], 12, 14, 12),  # a row that is nothing else
        ([30], 20, 22, 0),
    ],
)
def test_a_shared_prefix_is_read_once(
    family: tuple[Any, Any], lengths: list[int], shared: int, first_counted: int, read: int
) -> None:
    config, kind = family
    model = kind(config(**SIZES)).train()
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


def test_layers_that_forget_read_every_row_whole() -> None:
    model = MistralModel(MistralConfig(**SIZES, sliding_window=16)).train()
    ids, mask, counted = _rows([30, 41], 20, 22)
    hidden, apart = last_hidden(model, ids, mask, counted)
    assert apart == 0
    assert hidden.shape[:2] == ids.shape
