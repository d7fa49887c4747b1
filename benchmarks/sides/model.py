"""The model that the serving benchmark runs on: 5 million random parameters, or a folder of yours made endless.

Random weights cost what trained ones cost. The tokenizer's tokens are mostly whole words with their space, because
servers that hand out text by the word would otherwise be measured waiting for one. Nothing in the copy ends a turn, so
every side generates exactly as many tokens as it is asked for.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

VOCABULARY = 4096
SPECIAL = ["<|begin|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")


def words(count: int, seed: int = 0) -> list[str]:
    """Made-up words that sound like words."""
    draw = random.Random(seed)
    parts = ["ba", "co", "di", "fe", "gu", "la", "mi", "no", "pe", "ra", "so", "ti", "va", "we", "xi", "zo"]
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(parts, k=draw.randint(2, 4)))] = None
    return list(found)


def best_dtype() -> str:
    """What this processor computes fastest: every side loads the precision that the weights file has."""
    from inference_svc.engines.rows.loading import cpu_has_bfloat16

    return "bfloat16" if cpu_has_bfloat16() else "float32"


def make_random(folder: Path, *, hidden: int = 256, layers: int = 4, seed: int = 0, dtype: str = "bfloat16") -> Path:
    """A random Llama of about five million parameters, with its tokenizer; the same numbers in any precision."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    if (folder / "model.safetensors").exists():
        return folder
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=alphabet)
    draw, known = random.Random(seed), words(3000)
    bpe.train_from_iterator((" ".join(draw.choices(known, k=40)) for _ in range(4000)), trainer)
    begin, pad = SPECIAL[0], SPECIAL[2]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=begin, pad_token=pad)
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=2,
        initializer_range=0.1,
    )
    # Rounded first, so that runs in different precisions have the same weights.
    model = LlamaForCausalLM(config).to(torch.bfloat16).to(getattr(torch, dtype))
    model.generation_config.eos_token_id = None
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_endless(source: Path, folder: Path) -> Path:
    """A copy of a model in which no token ends a turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in WEIGHTS:
        for path in source.glob(pattern):
            shutil.copy2(path, folder)
    for name, keys in (
        ("config.json", ("eos_token_id",)),
        ("generation_config.json", ("eos_token_id",)),
        ("tokenizer_config.json", ("eos_token",)),
        ("special_tokens_map.json", ("eos_token",)),
    ):
        path = folder / name
        if path.exists():
            data = json.loads(path.read_text(encoding="utf-8"))
            data.update(dict.fromkeys((k for k in keys if k in data), None))
            path.write_text(json.dumps(data, indent=2), encoding="utf-8")
    return folder


class Prompts:
    """User messages that make prompts of exactly so many tokens, template included, all beginning differently.

    Args:
        folder: of the model, for its tokenizer.
        tokens: per prompt.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._tokens = tokens
        self._words = words(3000)

    def batch(self, size: int, number: int) -> list[str]:
        """The prompts of round `number` of `size` requests at once: the same on every call, used in no other round."""
        draw = random.Random(f"{size} {number}")
        return [self._prompt(draw) for _ in range(size)]

    def _prompt(self, draw: random.Random) -> str:
        while True:
            said = draw.choices(self._words, k=self._tokens)
            while (over := self._length(said) - self._tokens) > 0:
                del said[-max(1, over // 4) :]
            for _ in range(-over):
                said.append(draw.choice(self._words))
                if self._length(said) >= self._tokens:
                    break
            if self._length(said) == self._tokens:
                return " ".join(said)

    def _length(self, said: list[str]) -> int:
        messages = [{"role": "user", "content": " ".join(said)}]
        return len(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"])
