"""The conversation contract: what a server must know so that it speaks to a model as the training did."""

from __future__ import annotations

import hashlib
from typing import Any

_SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "repetition_penalty")


def text_digest(text: str) -> str:
    """`sha256:` and the hex digest of the UTF-8 text."""
    return "sha256:" + hashlib.sha256(text.encode("utf-8")).hexdigest()


def conversation_contract(tokenizer: Any, max_context: int, generation_config: Any) -> dict[str, Any]:
    """Template digest, stop tokens, context and sampling defaults of a model.

    Args:
        tokenizer: a `transformers` tokenizer.
        max_context: tokens of prompt and reply together.
        generation_config: the model's `GenerationConfig`, or None.
    """
    template = tokenizer.chat_template or ""
    if isinstance(template, dict):
        template = template["default"]
    ids = getattr(generation_config, "eos_token_id", None)
    ids = [ids] if isinstance(ids, int) else list(ids or [tokenizer.eos_token_id])
    defaults = {name: getattr(generation_config, name, None) for name in _SAMPLING}
    return {
        "chat_template_digest": text_digest(template),
        "stop_tokens": [tokenizer.convert_ids_to_tokens(i) for i in ids if i is not None],
        "max_context": max_context,
        "sampling_defaults": {k: v for k, v in defaults.items() if v is not None},
    }
