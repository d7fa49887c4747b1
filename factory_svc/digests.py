"""Digests of files, and the check that files still are what the registry says."""

from __future__ import annotations

import hashlib
from pathlib import Path

from chatmill.errors import FailedPrecondition
from factory_svc.entry import Artifact

_MEDIA_TYPES = {
    ".safetensors": "application/vnd.safetensors",
    ".json": "application/json",
    ".jinja": "text/x-jinja",
    ".txt": "text/plain",
    ".md": "text/markdown",
    ".yaml": "application/yaml",
}


def file_sha256(path: Path) -> str:
    """SHA-256 of the file's bytes, lower-case hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of the UTF-8 text, lower-case hexadecimal."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def describe_file(path: Path, shown_as: str) -> Artifact:
    """The artifact for one file, under the path that the registry is to show."""
    return Artifact(
        path=shown_as,
        sha256=file_sha256(path),
        bytes=path.stat().st_size,
        media_type=_MEDIA_TYPES.get(path.suffix, "application/octet-stream"),
    )


def verify(artifact: Artifact, path: Path) -> None:
    """Check that `path` still holds what the registry says.

    Raises:
        FailedPrecondition: reason `ARTIFACT_MISMATCH`; the file is missing, or has another size or digest.
    """
    if not path.is_file():
        problem = "is missing"
    elif path.stat().st_size != artifact.bytes:
        problem = f"has {path.stat().st_size} bytes instead of {artifact.bytes}"
    elif file_sha256(path) != artifact.sha256:
        problem = "has another SHA-256 than the registry says"
    else:
        return
    raise FailedPrecondition(
        f"{path} {problem}. Restore the file, or train or register the model again.",
        reason="ARTIFACT_MISMATCH",
        metadata={"path": str(path)},
    )
