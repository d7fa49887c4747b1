"""A folder with services that start quickly, do nothing, and stand in for the real ones by their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SERVICE = """\
import sys
from chatmill.runtime.server import Service, main

async def build(config):
    return Service({name!r}, [])

sys.exit(main({name!r}, build))
"""
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def dummies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, so that `python -m dataset_svc` finds the stand-in first."""
    folder = tmp_path / "dummies"
    for name in ("dataset", "factory", "inference", "eval"):
        package = folder / f"{name}_svc"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(SERVICE.format(name=name), encoding="utf-8")
    for name in [name for name in os.environ if name.startswith("CHATMILL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(folder)
    return folder
