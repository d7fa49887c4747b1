"""Model folders on disk, made once per session, and an engine that serves one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from inference_svc.engines.base import BaseSpec
from inference_svc.engines.rows.engine import RowsEngine

from . import tiny
from .streams import PARAMETERS
from .test_adapters import save_adapter


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A tiny Llama with tokenizer and template, as it would lie in the artifact store."""
    path = tmp_path_factory.mktemp("base")
    tiny.model.__wrapped__("llama").save_pretrained(path)
    tiny.tokenizer().save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def adapter_folders(tmp_path_factory) -> dict[str, Path]:
    """Two revisions of an adapter that say different things."""
    root = tmp_path_factory.mktemp("adapters")
    return {name: save_adapter(root / name, "llama", seed, r=4) for seed, name in enumerate(("r1", "r2"))}


@pytest.fixture
async def engine(folder: Path) -> AsyncIterator[RowsEngine]:
    made = RowsEngine(PARAMETERS)
    await made.load_base(BaseSpec("tiny", "1", folder))
    yield made
    await made.close()
