"""Reads what a Hugging Face model folder says about itself, without loading weights or any machine-learning library."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from chatmill.errors import FailedPrecondition
from factory_svc.digests import describe_file, text_sha256
from factory_svc.entry import Artifact, Contract

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty")
_SERVED = ("*.safetensors", "*.safetensors.index.json", "*.jinja", "*.json", "*.model", "vocab.txt", "merges.txt")
_NOT_SERVED = ("entry.yaml", "trainer_state.json")


def check_weights(folder: Path) -> None:
    """Refuse a model folder without safetensors weights or config.

    Raises:
        FailedPrecondition: says which file is missing and what to do.
    """
    if not (folder / "config.json").is_file():
        raise FailedPrecondition(
            f"{folder} holds no config.json, so it is not a Hugging Face model folder.", reason="NOT_A_MODEL"
        )
    check_weight_files([p.name for p in folder.iterdir()], str(folder))


def check_weight_files(names: list[str], where: str) -> None:
    """Refuse a list of files that has no safetensors.

    Raises:
        FailedPrecondition: reason `PICKLE_WEIGHTS` or `NO_WEIGHTS`.
    """
    if any(name.endswith(".safetensors") for name in names):
        return
    pickles = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")))
    if pickles:
        raise FailedPrecondition(
            f"{where} has only pickle weights ({', '.join(pickles[:3])}), which can run code when they are loaded. "
            "Convert them to safetensors (save_pretrained writes it) and try again.",
            reason="PICKLE_WEIGHTS",
        )
    raise FailedPrecondition(f"{where} holds no *.safetensors weights.", reason="NO_WEIGHTS")


def list_artifacts(folder: Path, shown_under: str) -> tuple[Artifact, ...]:
    """All files that serving needs, sorted, with paths `shown_under/name`."""
    files = {path for pattern in _SERVED for path in folder.glob(pattern) if path.name not in _NOT_SERVED}
    return tuple(describe_file(path, f"{shown_under}/{path.name}") for path in sorted(files))


def read_contract(folder: Path) -> Contract:
    """The conversation contract of a complete model folder.

    Raises:
        FailedPrecondition: reason `NO_CHAT_TEMPLATE`, or a file is not JSON.
    """
    tokenizer = _json(folder / "tokenizer_config.json")
    template = chat_template(folder, tokenizer)
    if not template:
        raise FailedPrecondition(
            f"The tokenizer in {folder} has no chat template, so it is not known how the model marks turns. "
            "Choose an instruct or chat variant of the model.",
            reason="NO_CHAT_TEMPLATE",
        )
    config, generation = _json(folder / "config.json"), _json(folder / "generation_config.json")
    return Contract(
        chat_template_digest=text_sha256(template),
        stop_tokens=_stop_tokens(folder, tokenizer, generation, config),
        max_context=int(config.get("max_position_embeddings") or 0),
        sampling_defaults=_sampling_defaults(generation),
    )


def chat_template(folder: Path, tokenizer_config: dict[str, Any]) -> str:
    """The template's text as transformers would load it, or an empty text."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = tokenizer_config.get("chat_template") or ""
    if isinstance(found, list):
        found = {t["name"]: t["template"] for t in found}.get("default", "")
    return str(found)


def parameter_count(folder: Path) -> int:
    """Numbers in all safetensors files, read from their headers."""
    return sum(_tensor_sizes(path) for path in folder.glob("*.safetensors"))


def _tensor_sizes(path: Path) -> int:
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")


def _sampling_defaults(generation: dict[str, Any]) -> dict[str, Any]:
    """What the model's author set. Without `do_sample` transformers is greedy, which is temperature 0 here."""
    if not generation.get("do_sample"):
        greedy = {"temperature": 0.0}
        return greedy | {k: v for k, v in generation.items() if k == "repetition_penalty" and v is not None}
    return {name: generation[name] for name in _SAMPLING if generation.get(name) is not None}


def _stop_tokens(
    folder: Path, tokenizer: dict[str, Any], generation: dict[str, Any], config: dict[str, Any]
) -> tuple[str, ...]:
    ids = generation.get("eos_token_id", config.get("eos_token_id"))
    wanted = [ids] if isinstance(ids, int) else list(ids or [])
    added = {t["id"]: t["content"] for t in _json(folder / "tokenizer.json").get("added_tokens", [])}
    added |= {int(i): t["content"] for i, t in tokenizer.get("added_tokens_decoder", {}).items()}
    names = [added[i] for i in wanted if i in added]
    if not names and tokenizer.get("eos_token"):
        token = tokenizer["eos_token"]
        names = [token["content"] if isinstance(token, dict) else str(token)]
    return tuple(names)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPrecondition(f"{path} is not JSON: {error}.", reason="NOT_A_MODEL") from None
    return data if isinstance(data, dict) else {}
