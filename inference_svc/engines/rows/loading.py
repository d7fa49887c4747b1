"""A model folder to a model in memory: safetensors only, no code from the folder, quantised by bitsandbytes.

This module knows no request and no schedule.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel

from chatmill.errors import FailedPrecondition, NotFound
from inference_svc.engines.base import BaseInfo
from inference_svc.engines.rows.parameters import RowsParameters

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A base that is ready.

    Attributes:
        model: in eval mode, on its device.
        tokenizer: a fast one.
        info: what it turned out to be.
    """

    model: PreTrainedModel
    tokenizer: Any
    info: BaseInfo


def load(path: Path, parameters: RowsParameters) -> Loaded:
    """Load the model folder at `path`.

    Raises:
        NotFound: no such folder.
        FailedPrecondition: no config or safetensors, corrupt, or of an unsupported kind. Reasons `UNSAFE_WEIGHTS`,
            `REMOTE_CODE`, `CORRUPT_WEIGHTS`, `NO_FAST_TOKENIZER`, `NO_DEVICE`.
    """
    _check_folder(path)
    device = _device(parameters)
    size = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if parameters.quantization != "none" and size < parameters.smallest_quantized_mib << 20:
        log.info("%s has %d MiB of weights, too few to quantise", path.name, size >> 20)
        parameters = replace(parameters, quantization="none")
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        dtype = _dtype(parameters, config, device)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            quantization_config=_quantization(parameters, dtype),
            device_map={"": device},
        )
    except Exception as error:
        # Transformers and safetensors raise many kinds here; each means that these files can't be served.
        raise FailedPrecondition(
            f"{path.name}: the model can't be loaded: {type(error).__name__}: {error}", reason="CORRUPT_WEIGHTS"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise FailedPrecondition(
            f"{path.name}: has no fast tokenizer (tokenizer.json); convert it with Transformers once.",
            reason="NO_FAST_TOKENIZER",
        )
    model.eval()
    model.requires_grad_(False)
    _avoid_odd_shapes(model)
    return Loaded(model, tokenizer, _info(model, tokenizer, parameters, device))


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise NotFound(f"there is no model folder {path.name!r}.", reason="NO_MODEL_FOLDER")
    if not (path / "config.json").is_file():
        raise FailedPrecondition(f"{path.name}: has no config.json.", reason="CORRUPT_WEIGHTS")
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPrecondition(f"{path.name}/config.json: is no JSON: {error}", reason="CORRUPT_WEIGHTS") from error
    if "auto_map" in config:
        raise FailedPrecondition(
            f"{path.name}: needs code from its own folder (auto_map), which is never run.", reason="REMOTE_CODE"
        )
    if not any(path.glob("*.safetensors")):
        raise FailedPrecondition(
            f"{path.name}: has no safetensors weights; other formats can run code and are never opened.",
            reason="UNSAFE_WEIGHTS",
        )


def _device(parameters: RowsParameters) -> torch.device:
    if parameters.device == "cuda" and not torch.cuda.is_available():
        raise FailedPrecondition("device is cuda, but torch sees no CUDA device.", reason="NO_DEVICE")
    if parameters.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(parameters.device)


def _dtype(parameters: RowsParameters, config: Any, device: torch.device) -> torch.dtype:
    if parameters.dtype != "auto":
        return getattr(torch, parameters.dtype)  # type: ignore[no-any-return]
    own: torch.dtype = getattr(config, "dtype", None) or torch.float32
    if device.type == "cpu" and own in (torch.bfloat16, torch.float16):
        return torch.bfloat16 if cpu_has_bfloat16() else torch.float32
    return own


def cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; emulation is slower than float32."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capability:
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16") or capability.get("bf16"))
    return bool(torch.cpu._is_avx512_bf16_supported())


def _quantization(parameters: RowsParameters, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    if parameters.quantization == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=False
        )
    if parameters.quantization == "int8":
        # It says on every product of every step that it works in float16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return None


def _avoid_odd_shapes(model: PreTrainedModel) -> None:
    """Keep layers whose shape it can't pack from bitsandbytes' AVX-512 kernel, which would fail on the first step."""
    for module in model.modules():
        if isinstance(module, Linear4bit) and (module.in_features % 64 or module.out_features % 32):
            module.support_avx512bf16_for_cpu = False


def _info(model: PreTrainedModel, tokenizer: Any, parameters: RowsParameters, device: torch.device) -> BaseInfo:
    config = model.config.get_text_config(decoder=True)
    own = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 2048
    context = min(own, parameters.context_length) if parameters.context_length else own
    template = tokenizer.chat_template
    digest = hashlib.sha256(template.encode()).hexdigest() if isinstance(template, str) and template else ""
    ends = _end_ids(model, tokenizer)
    return BaseInfo(
        context_length=context,
        vocabulary_size=config.vocab_size,
        end_token_ids=ends,
        end_tokens=tuple(tokenizer.convert_ids_to_tokens(list(ends))),
        template_digest=digest,
        quantisation=parameters.quantization,
        device=device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        memory_bytes=model.get_memory_footprint(),
    )


def _end_ids(model: PreTrainedModel, tokenizer: Any) -> tuple[int, ...]:
    """Tokens that end a turn, as `generate` would take them, and the tokenizer's own."""
    own = model.generation_config.eos_token_id
    ids = [] if own is None else list(own) if isinstance(own, list | tuple) else [own]
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    return tuple(ids)


def use_threads(count: int) -> int:
    """Set torch's threads for this process; 0 takes one per core that the process may use. The tokenizer gets none of
    its own, unless the environment says so: on a few cores 32 prompts are tokenized no sooner by several."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    threads = count or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    return threads
