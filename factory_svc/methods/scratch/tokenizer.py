"""The tokenizer of a new model: byte-level BPE learnt from the conversations themselves.

Bytes mean that no text is unknown, so English, Chinese and whatever else a customer pastes share one vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from chatmill.errors import InvalidArgument
from factory_svc.task import Messages

BEGIN, END, PAD = "<|begin|>", "<|end|>", "<|pad|>"
CONTROL_TOKENS = (BEGIN, END, PAD, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
"""Never part of what a model says to a customer, so decoding may skip them."""
CALL_TOKENS = ("<tool_call>", "</tool_call>")
"""Single tokens, but part of what the model says: decoding keeps them, as in Qwen's tokenizers."""

# Qwen2's pre-tokenization (digits one by one, so that order numbers are copied digit by digit), and Han characters one
# by one too: a small corpus would else turn whole Chinese phrases into single tokens, which nothing unseen is made of.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{Han}|[^\r\n\p{L}\p{N}]?[\p{L}&&[^\p{Han}]]+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def train_tokenizer(conversations: Sequence[Messages], vocabulary: int, max_positions: int) -> Any:
    """A `PreTrainedTokenizerFast` learnt from the conversations.

    Args:
        conversations: the texts.
        vocabulary: most tokens, special ones included; less if the data does not hold so many pairs.
        max_positions: context that the tokenizer announces, in tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[
            *(AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS),
            *(AddedToken(t, special=False, normalized=False) for t in CALL_TOKENS),
        ],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(conversations), trainer)
    # The trainer marks all of them special; the call tokens must survive decoding.
    bpe.add_tokens([AddedToken(t, special=False, normalized=False) for t in CALL_TOKENS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        pad_token=PAD,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE.read_text(encoding="utf-8")
    return tokenizer


def load_tokenizer(folder: str) -> Any:
    """The tokenizer in `folder`.

    Raises:
        InvalidArgument: there is none, or it lacks a chat template.
    """
    from transformers import AutoTokenizer

    if not (Path(folder) / "tokenizer_config.json").is_file():
        raise InvalidArgument.field("parameters.tokenizer", f"{folder} holds no tokenizer_config.json")
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if not tokenizer.chat_template:
        raise InvalidArgument.field("parameters.tokenizer", f"the tokenizer in {folder} has no chat template")
    return tokenizer


def _texts(conversations: Sequence[Messages]) -> Iterator[str]:
    for messages in conversations:
        for message in messages:
            yield message["content"]
