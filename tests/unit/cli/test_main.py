"""The command line itself: help, mistakes, errors, and what it costs to start."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from chatmill import __version__
from chatmill.cli.__main__ import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for name, text in COMMANDS.items():
        assert name in shown
        assert text in shown


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert "--home" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["list", "--home", "HOME"],
        ["--home", "HOME", "list"],
        ["alias", "set", "live", "shop", "--home=HOME", "--debug"],
    ],
)
def test_common_options_may_stand_anywhere(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr("chatmill.cli.models.run", lambda arguments: seen.append(arguments) or 7)
    assert main(["models", *words, "-o", "a=b", "-o", "c=d"]) == 7
    assert seen[0].home == Path("HOME")
    assert seen[0].option == ["a=b", "c=d"]
    assert seen[0].debug is ("--debug" in words)
    assert seen[0].action in words[0:1] + words[2:3]


def test_a_message_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []
    monkeypatch.setattr("chatmill.cli.chat.run", lambda arguments: seen.append(arguments) or 0)
    assert main(["chat", "shop", "-m", "where is my order?", "--home", "x", "--fact", "Customer: Ana."]) == 0
    assert (seen[0].model, seen[0].message, seen[0].fact) == ("shop", "where is my order?", ["Customer: Ana."])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"chatmill {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from chatmill.cli.__main__ import main; main([])\n"
        "heavy = {'torch', 'transformers', 'grpc', 'rich', 'google.protobuf', 'yaml'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_command_ever_imports_torch() -> None:
    modules = [f"chatmill.cli.{name}" for name in COMMANDS]
    more = ["chatmill.cli.meshes", "chatmill.cli.board", "chatmill.recipe.running", "chatmill.cli.terminal"]
    program = f"import sys, importlib\nfor name in {modules + more}: importlib.import_module(name)\n"
    program += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_options_before_the_command_are_told_where_they_belong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--home", "somewhere", "run", "recipe.yaml"]) == 2
    assert "options go after the command: chatmill run --home somewhere recipe.yaml" in capsys.readouterr().err


@pytest.mark.parametrize(("word", "told"), [("rnu", "did you mean 'run'?"), ("xyzzy", "unknown command 'xyzzy'. Comm")])
def test_an_unknown_command_names_the_nearest(word: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert told in capsys.readouterr().err


def test_an_error_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "absent.yaml"), "--home", str(tmp_path)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {tmp_path / 'absent.yaml'}: there is no such file\n"


def test_debug_shows_the_whole_stack(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="there is no such file"):
        main(["run", str(tmp_path / "absent.yaml"), "--debug"])


def test_a_misspelt_key_ends_before_any_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.yaml").write_text("name: N\ncompany: C\nsystem_prompt: hi\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("agent: agent.yaml\nsource: a.jsonl\nreplay: {max_turns: 1}\ngaet: {}\n", encoding="utf-8")
    assert main(["run", str(recipe)]) == 2
    assert f"{recipe}:4: gaet: unknown key; did you mean 'gate'?" in capsys.readouterr().err
    assert not (tmp_path / "chatmill-home").exists()


@pytest.mark.parametrize(("source", "told"), [("a.jsonl", "there is no such file"), (".", "is a folder")])
def test_a_missing_source_ends_before_any_service_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "agent.yaml").write_text("name: N\ncompany: C\nsystem_prompt: hi\n", encoding="utf-8")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"agent: agent.yaml\nsource: {source}\nreplay: {{max_turns: 1}}\n", encoding="utf-8")
    assert main(["run", str(recipe)]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "chatmill-home").exists()


def test_config_check_says_where_values_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CHATMILL_EVAL__PORT", "6001")
    (tmp_path / "chatmill.yaml").write_text("factory:\n  port: 6002\n", encoding="utf-8")
    assert main(["config", "check", "-o", "dataset.port=6003"]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["eval.port"] == ["6001", "CHATMILL_EVAL__PORT"]
    assert lines["factory.port"][0] == "6002"
    assert lines["factory.port"][1].endswith("chatmill.yaml:2")
    assert lines["dataset.port"] == ["6003", "flag"]


def test_a_wrong_configuration_names_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chatmill.yaml").write_text("factory:\n  prot: 6002\n", encoding="utf-8")
    assert main(["config", "check"]) == 2
    shown = capsys.readouterr().err
    assert "chatmill.yaml:2" in shown
    assert "port" in shown


def test_a_home_that_can_not_be_made_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["models", "--home", str(blocked / "home")]) == 2
    assert str(blocked) in capsys.readouterr().err
