"""Digests of a step's inputs: equal digest, nothing to do again. Knows no service."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from chatmill import __version__

LABEL = "recipe-inputs"
"""Label of models and evaluations that a recipe made: the digest of what went into them."""
RECIPE_LABEL = "recipe"
"""Label of datasets that a recipe made: the recipe's name."""


def of(inputs: dict[str, Any]) -> str:
    """Digest of `inputs` (JSON values) and of this version of Chatmill, 32 hexadecimal digits.

    The version counts because a change of ours can change what comes out of equal inputs; a score is only comparable
    under the same grader.
    """
    canonical = json.dumps({"chatmill": __version__, **inputs}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


def of_files(path: Path) -> str:
    """Digest of a file, or of all files in a folder with their names, hidden ones left out; 64 hex digits."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and not _hidden(p, path))
    total = hashlib.sha256()
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        total.update(f"{name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _hidden(file: Path, root: Path) -> bool:
    return any(part.startswith((".", "__pycache__")) for part in file.relative_to(root).parts)
