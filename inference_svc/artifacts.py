"""The files of a model: where they lie, whether they may be read, and whether they are still what the registry says.

A file is read only under an allowed folder, symbolic links resolved, and only if its sha256 is the entry's. Digests are
kept by path, size and time of change, so a model that is loaded again is not read twice. This module knows no engine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from chatmill.errors import FailedPrecondition, NotFound, PermissionDenied
from inference_svc.entries import ModelEntry, ModelFile

ARTIFACT_MISMATCH = "ARTIFACT_MISMATCH"
"""Reason of the FailedPrecondition for files that are not what the registry says."""
_CHUNK = 1 << 20


class ArtifactStore:
    """Finds and checks files. Blocking; call it in a thread.

    Args:
        artifact_root: what relative paths of the registry start from.
        roots: folders besides it that files may lie in.
        hub_cache: folder of the Hugging Face cache, for models that lie on the hub.
    """

    def __init__(self, artifact_root: Path, roots: Sequence[Path] = (), hub_cache: Path | None = None) -> None:
        self._artifact_root = artifact_root
        self._roots = tuple(r.resolve() for r in (artifact_root, *roots, *([hub_cache] if hub_cache else [])))
        self._hub_cache = hub_cache
        self._digests: dict[tuple[str, int, int], str] = {}
        self._lock = Lock()

    def folder(self, entry: ModelEntry) -> Path:
        """The folder of the entry's files, every one of them checked.

        Raises:
            NotFound: a file is missing.
            PermissionDenied: reason `PATH_NOT_ALLOWED`: a file lies outside the allowed folders.
            FailedPrecondition: reason `ARTIFACT_MISMATCH`: a file is not what the registry says, or the entry has none.
        """
        if not entry.files and entry.hub_id:
            return self._from_hub(entry)
        paths = [self._checked(entry, file) for file in entry.files]
        folders = {p.parent for p in paths}
        if len(folders) != 1:
            raise FailedPrecondition(
                f"{entry.name}: its {len(paths)} files lie in {len(folders)} folders, and a model is one folder. "
                "Register it again.",
                reason=ARTIFACT_MISMATCH,
            )
        return folders.pop()

    def weight_bytes(self, entry: ModelEntry) -> int:
        """Size of the entry's safetensors files as the registry says, 0 if it does not."""
        return sum(f.size_bytes for f in entry.files if f.path.endswith(".safetensors"))

    def _checked(self, entry: ModelEntry, file: ModelFile) -> Path:
        path = (self._artifact_root / file.path).resolve()
        if not any(path.is_relative_to(root) for root in self._roots):
            raise PermissionDenied(
                f"{entry.name}: {path} lies outside the folders that models may be read from "
                f"({', '.join(map(str, self._roots))}). Add its folder to inference.roots.",
                reason="PATH_NOT_ALLOWED",
            )
        try:
            found = self._digest(path)
        except OSError as error:
            raise NotFound(
                f"{entry.name}: {path} can't be read: {error.strerror}. Restore the file, or register the model again.",
                reason="ARTIFACT_MISSING",
            ) from error
        if found != file.sha256:
            raise FailedPrecondition(
                f"{entry.name}: {path} has sha256 {found[:12]}…, and the registry says {file.sha256[:12]}…. It was "
                "changed or damaged after it was registered; restore it, or register the model again.",
                reason=ARTIFACT_MISMATCH,
                metadata={"path": str(path), "sha256": found, "expected": file.sha256},
            )
        return path

    def _digest(self, path: Path) -> str:
        stat = os.stat(path)
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        with self._lock:
            known = self._digests.get(key)
        if known is None:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while block := stream.read(_CHUNK):
                    digest.update(block)
            known = digest.hexdigest()
            with self._lock:
                self._digests[key] = known
        return known

    def _from_hub(self, entry: ModelEntry) -> Path:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            # Only data is fetched: no code, and of the weights only safetensors.
            return Path(
                snapshot_download(
                    entry.hub_id,
                    revision=entry.remote_name or None,
                    cache_dir=self._hub_cache,
                    allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"],
                )
            )
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise NotFound(
                f"{entry.name}: {entry.hub_id} can't be had from the Hugging Face hub: {error}. Check the network, or "
                "put the model into the cache beforehand.",
                reason="ARTIFACT_MISSING",
            ) from error
