"""The benchmark's model as a GGUF file in float32, for llama.cpp.

llama.cpp's own converter refuses tokenizers that it has not met; this one has GPT-2's splitting and nothing else, so
the file is written here with the `gguf` package. Only for Llama-shaped models with a byte-level BPE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.sides.base import Missing

CONTROL, NORMAL = 3, 1
"""Token types of GGUF."""
LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OTHER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write(folder: Path, target: Path) -> Path:
    """Convert the model in `folder`.

    Raises:
        Missing: the `gguf` package is not installed, or the model is not a Llama.
    """
    try:
        import gguf
    except ImportError as error:
        raise Missing("the gguf package is not installed: pip install gguf") from error
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] != "llama":
        raise Missing(f"{config['model_type']} models are not converted here; set LLAMA_GGUF to a file of your own")
    writer = gguf.GGUFWriter(str(target), "llama")
    heads, kv = config["num_attention_heads"], config["num_key_value_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_rope_freq_base(float((config.get("rope_parameters") or {}).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    _tokenizer(writer, folder, config)
    for name, tensor in load_file(folder / "model.safetensors").items():
        module = name.removesuffix(".weight")
        data = tensor.float().numpy()
        if module in OTHER:
            writer.add_tensor(f"{OTHER[module]}.weight", data)
            continue
        _, _, number, part = module.split(".", 3)
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            data = _interleaved(data, heads if part.endswith("q_proj") else kv)
        writer.add_tensor(f"blk.{number}.{LAYER[part]}.weight", data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def _interleaved(weight: Any, heads: int) -> Any:
    """Rows of each head in the order that GGML's rotation wants: pairs side by side instead of halves."""
    out, into = weight.shape
    return weight.reshape(heads, 2, out // heads // 2, into).swapaxes(1, 2).reshape(out, into).copy()


def _tokenizer(writer: Any, folder: Path, config: dict[str, Any]) -> None:
    data = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in data["added_tokens"] if token["special"]}
    ids = {**data["model"]["vocab"], **{token["content"]: token["id"] for token in data["added_tokens"]}}
    names = {index: name for name, index in ids.items()}
    tokens = [names.get(index, f"<|unused{index}|>") for index in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL if t in special or t.startswith("<|unused") else NORMAL for t in tokens])
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in data["model"]["merges"]])
    writer.add_bos_token_id(ids["<|begin|>"])
    # It wants a token that ends a turn; the request says that none does.
    writer.add_eos_token_id(ids["<|end|>"])
    writer.add_pad_token_id(ids["<|pad|>"])
    writer.add_add_bos_token(False)
    writer.add_chat_template((folder / "chat_template.jinja").read_text(encoding="utf-8"))
