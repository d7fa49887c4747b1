"""Asks the Hugging Face hub what a model is, without fetching its weights or importing a machine-learning library."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatmill.errors import FailedPrecondition, NotFound, Unavailable
from factory_svc.entry import Artifact, Contract
from factory_svc.model_files import check_weight_files, read_contract

_SMALL = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json", "chat_template.jinja")
_TIMEOUT = 20.0
"""Seconds to wait for the hub's answer about a model."""


@dataclass(frozen=True, slots=True)
class HubModel:
    """What the hub says of a model at one commit.

    Attributes:
        commit: the commit, 40 hexadecimal digits.
        artifacts: its safetensors weights, with the hub's own digests.
        conversation: how a conversation is put to it.
        parameter_count: weights, 0 if the hub does not say.
        license: SPDX identifier as its card gives it, or empty.
    """

    commit: str
    artifacts: tuple[Artifact, ...]
    conversation: Contract
    parameter_count: int = 0
    license: str = ""


class Hub:
    """The hub at `HF_ENDPOINT` (huggingface.co by default), with the user's token if there is one."""

    def describe(self, model: str, revision: str | None) -> HubModel:
        """The model `owner/name` at `revision` (a branch, tag or commit; the main branch if None).

        Raises:
            NotFound: there is no such model or revision, or it is private.
            FailedPrecondition: it has no safetensors weights, needs code of its own, or has no chat template.
            Unavailable: the hub can't be reached; a folder can be named instead.
        """
        info = self._info(model, revision)
        files = [sibling.rfilename for sibling in info.siblings or ()]
        check_weight_files(files, f"{model} on the hub")
        if "auto_map" in (info.config or {}):
            raise FailedPrecondition(
                f"{model} needs program code of its own, which is never run here. Choose a model of an architecture "
                "that transformers knows.",
                reason="REMOTE_CODE",
            )
        weights = tuple(
            Artifact(s.rfilename, s.lfs.sha256, s.lfs.size, "application/vnd.safetensors")
            for s in info.siblings or ()
            if s.rfilename.endswith(".safetensors") and s.lfs is not None
        )
        return HubModel(
            commit=info.sha,
            artifacts=tuple(replace(a, path=f"hf://{model}@{info.sha}/{a.path}") for a in weights),
            conversation=self._contract(model, info.sha, files),
            parameter_count=int(info.safetensors.total) if info.safetensors else 0,
            license=str((info.card_data or {}).get("license") or ""),
        )

    def _info(self, model: str, revision: str | None) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

        try:
            return HfApi().model_info(model, revision=revision, files_metadata=True, timeout=_TIMEOUT)
        except RevisionNotFoundError as error:
            raise NotFound(f"{model} on the hub has no revision {revision!r}.", reason="BASE_NOT_FOUND") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise NotFound(
                f"There is no model {model} on the hub, or it is private and no token is set.", reason="BASE_NOT_FOUND"
            ) from error
        except _away() as error:
            raise _unreachable(model, error) from error

    def _contract(self, model: str, commit: str, files: list[str]) -> Contract:
        from huggingface_hub import hf_hub_download

        with tempfile.TemporaryDirectory() as folder:
            try:
                for name in _SMALL:
                    if name in files:
                        hf_hub_download(model, name, revision=commit, local_dir=folder)
            except _away() as error:
                raise _unreachable(model, error) from error
            return read_contract(Path(folder))


def _away() -> tuple[type[Exception], ...]:
    """What is raised when the hub can't be reached or answers with an error."""
    from huggingface_hub.errors import HfHubHTTPError

    # Which HTTP client the library uses has changed between its versions; its own error descends from the client's.
    return HfHubHTTPError.__bases__


def _unreachable(model: str, error: Exception) -> Unavailable:
    return Unavailable(
        f"The Hugging Face hub can't be reached for {model} ({type(error).__name__}). Try again, or put the model into "
        "a folder and name that.",
        reason="HUB_UNREACHABLE",
        retry_after=30.0,
    )
