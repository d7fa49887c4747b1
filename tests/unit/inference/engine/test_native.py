"""What is compiled is kept where only the user writes, and made anew where it can't be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from inference_svc.engines.rows import native

from .test_between import compiled_for


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    compiled_for(torch.float32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "chatmill"


def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each."""
    seen: list[Path] = []
    compile_ = native._compile
    monkeypatch.setattr(native, "_compile", lambda command, library: (seen.append(library), compile_(command, library)))
    return seen


def test_a_library_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = compilations(monkeypatch)
    assert native.load("best").best
    assert native.load("best").best
    assert native.load("best", "-DHALF=1").best
    assert len(seen) == 2
    assert cache.stat().st_mode & 0o777 == 0o700
    assert sorted(path.suffix for path in cache.iterdir()) == [".so", ".so"]


def test_another_compiler_makes_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = compilations(monkeypatch)
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nexec cc "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    native.load("best")
    compiler.write_text('#!/bin/sh\nexec cc -O2 "$@"\n')
    native.load("best")
    assert len(seen) == 2


def test_what_is_no_library_is_made_anew(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = compilations(monkeypatch)
    native.load("best")
    (kept,) = cache.iterdir()
    # A new file: this process has the old one in memory.
    kept.unlink()
    kept.write_bytes(b"")
    assert native.load("best").best
    assert native.load("best").best
    assert len(seen) == 2
    assert kept.stat().st_size


def test_where_others_write_nothing_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = compilations(monkeypatch)
    cache.mkdir()
    cache.chmod(0o770)
    assert native.load("best").best
    assert native.load("best").best
    assert len(seen) == 2
    assert not list(cache.iterdir())


def test_without_a_cache_it_is_compiled_each_time(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    seen = compilations(monkeypatch)
    cache.write_text("a file")
    assert native.load("best").best
    assert native.load("best").best
    assert len(seen) == 2
