"""A mesh that is started for one command sends the key that was named there to whom was named there alone."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from chatmill.cli.evals import running


def arguments(**values: object) -> argparse.Namespace:
    given = {"model": "shop", "baseline": None, "judge": None, "customer": None, "key_file": None, "option": ["a=b"]}
    return argparse.Namespace(**{**given, **values})


def test_the_key_and_the_access_points_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "key").write_text("sk-secret\n")
    asked = arguments(
        model="https://api.example.com:8443/v1#m", baseline="http://10.0.0.7/v1#n", judge="shop", key_file="key"
    )
    own = running._with_key(asked)
    assert own.option == ["a=b", f"eval.key_root={tmp_path}", "eval.trusted_hosts=10.0.0.7,api.example.com:8443"]
    assert asked.option == ["a=b"]
    assert running.target("http://x/v1#m", "key").openai.api_key_file == str(tmp_path / "key")


def test_a_name_in_the_folder_of_keys_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    asked = arguments(model="http://x/v1#m", key_file="there")
    assert running._with_key(asked) is asked
    assert running.target("http://x/v1#m", "there").openai.api_key_file == "there"
