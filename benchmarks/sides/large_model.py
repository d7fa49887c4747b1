"""A folder with a model of eight billion random parameters, made on the GPU in seconds.

The shape is Llama 3's. Its tokenizer has a whole word for nearly every token, so that each token is text and prompts
are as long as they have words; nothing ends a turn.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sides.model import SPECIAL, TEMPLATE, words

if TYPE_CHECKING:
    from torch import Tensor

VOCABULARY = 128_256
SHAPES: dict[str, dict[str, int]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
WRITERS = 8


def make(folder: Path, shape: str, device: str) -> Path:
    """The model in bfloat16, a file per layer, with its tokenizer."""
    import torch
    from transformers import GenerationConfig, LlamaConfig

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=8192,
        rope_theta=500_000.0,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
        tie_word_embeddings=False,
        dtype=torch.bfloat16,
        architectures=["LlamaForCausalLM"],
        **SHAPES[shape],
    )
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=0, eos_token_id=None, pad_token_id=2).save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    _write_weights(folder, config, torch.device(device))
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    said = words(3000)
    known = [*SPECIAL, *pre_tokenizers.ByteLevel.alphabet(), *said, *(f"Ġ{word}" for word in said)]
    known = list(dict.fromkeys(known))
    known += [f"Ġw{number}" for number in range(VOCABULARY - len(known))]
    vocabulary = {word: index for index, word in enumerate(known)}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL[2]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole.decoder = decoders.ByteLevel()
    whole.add_special_tokens(SPECIAL)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole, bos_token=SPECIAL[0], pad_token=SPECIAL[2], unk_token=SPECIAL[2]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def _write_weights(folder: Path, config: Any, device: Any) -> None:
    """Draw the weights on the device, and write each layer while the next ones are drawn."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    hidden, inner = config.hidden_size, config.intermediate_size
    size = hidden // config.num_attention_heads
    kv = size * config.num_key_value_heads

    def drawn(*dimensions: int) -> Tensor:
        return torch.randn(dimensions, device=device, dtype=torch.bfloat16).mul_(0.02).cpu()

    def ones() -> Tensor:
        return torch.ones(hidden, dtype=torch.bfloat16)

    def layer(number: int) -> dict[str, Tensor]:
        shapes = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        name = f"model.layers.{number}"
        tensors = {f"{name}.{part}.weight": drawn(*shape) for part, shape in shapes.items()}
        return tensors | {f"{name}.{part}.weight": ones() for part in ("input_layernorm", "post_attention_layernorm")}

    files: dict[str, str] = {}
    total = 0
    with ThreadPoolExecutor(WRITERS) as pool:
        waiting = []
        for number in range(config.num_hidden_layers + 1):
            if number < config.num_hidden_layers:
                tensors = layer(number)
            else:
                ends = ("model.embed_tokens.weight", "lm_head.weight")
                tensors = {name: drawn(config.vocab_size, hidden) for name in ends} | {"model.norm.weight": ones()}
            file = f"model-{number:05d}.safetensors"
            files |= dict.fromkeys(tensors, file)
            total += sum(tensor.nbytes for tensor in tensors.values())
            waiting.append(pool.submit(save_file, tensors, folder / file, {"format": "pt"}))
        for done in waiting:
            done.result()
    index = {"metadata": {"total_size": total}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
