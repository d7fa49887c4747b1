"""Loads base models and tokenizers for training: safetensors only, no code from the model's author."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from chatmill.errors import FailedPrecondition, NotFound
from factory_svc.model_files import check_weights


def load_tokenizer(base: str, revision: str | None = None) -> Any:
    """The tokenizer of a folder or hub id.

    Raises:
        NotFound: there is none.
    """
    from transformers import AutoTokenizer

    return _guarded(base, lambda: AutoTokenizer.from_pretrained(base, revision=revision, trust_remote_code=False))


def load_model(base: str, revision: str | None = None, *, quantisation: Any = None) -> Any:
    """A causal language model, frozen by nobody yet.

    Args:
        base: folder or hub id.
        revision: commit of the hub id.
        quantisation: a `BitsAndBytesConfig`, or None for full weights (fp32 on CPU, bf16 on CUDA).

    Raises:
        NotFound: folder or hub id does not exist.
        FailedPrecondition: it has no safetensors weights, or needs code of its own.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # it would fill the worker's log; our progress says that it loads
    cuda = torch.cuda.is_available()
    dtype = torch.bfloat16 if cuda or quantisation is not None else torch.float32
    return _guarded(
        base,
        lambda: AutoModelForCausalLM.from_pretrained(
            base,
            revision=revision,
            dtype=dtype,
            quantization_config=quantisation,
            device_map={"": 0} if cuda else None,
            use_safetensors=True,
            trust_remote_code=False,
        ),
    )


def _guarded(base: str, load: Any) -> Any:
    """`load()`, with the errors that users meet turned into one clear line."""
    folder = Path(base)
    if folder.is_absolute() and not folder.is_dir():
        raise NotFound(f"Base model folder {base} does not exist.", reason="BASE_NOT_FOUND")
    try:
        return load()
    except (OSError, ValueError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if folder.is_dir():
            check_weights(folder)
            raise FailedPrecondition(
                f"Base model {base} can't be loaded: {text}", reason="BASE_NOT_LOADABLE"
            ) from error
        raise NotFound(f"Base model {base} can't be loaded from the hub: {text}", reason="BASE_NOT_FOUND") from error
