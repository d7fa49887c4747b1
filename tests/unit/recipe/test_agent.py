"""The agent card: what it renders, and that every mistake names its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatmill import agent
from chatmill.errors import InvalidArgument, NotFound


def write(folder: Path, text: str) -> Path:
    path = folder / "agent.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_renders_its_placeholders(recipe_file: Path) -> None:
    card = agent.load(recipe_file.parent / "agent.yaml")
    assert card.render() == "You are Nova of Fernhill."
    assert card.handover[0].reason == "complaint"


def test_policies_can_stand_in_the_prompt(tmp_path: Path) -> None:
    text = 'name: N\ncompany: C\nsystem_prompt: "Rules:\\n{policies}"\n'
    text += "policies:\n- {id: a, text: A.}\n- {id: b, text: B.}\n"
    assert agent.load(write(tmp_path, text)).render() == "Rules:\nA.\nB."


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        ("name: N\ncompany: C\nsystem_prompt: hi\ntoen: kind\n", 4, "did you mean 'tone'"),
        ("name: N\ncompany: C\nsystem_prompt: hi {nmae}\n", 3, "did you mean 'name'"),
        ("name: N\ncompany: C\nsystem_prompt: hi {name\n", 3, "unbalanced braces"),
        ("name: N\ncompany: C\nsystem_prompt: hi {name.__class__}\n", 3, "unknown placeholder"),
        ("name: ''\ncompany: C\nsystem_prompt: hi\n", 1, "must not be empty"),
        ("name: N\ncompany: C\nsystem_prompt: hi\nschema: 2\n", 4, "must be 1"),
        (
            "name: N\ncompany: C\nsystem_prompt: hi\npolicies:\n- {id: a, text: A}\n- {id: a, text: B}\n",
            6,
            "used twice",
        ),
        ("name: N\ncompany: C\nsystem_prompt: hi\npolicies:\n- {id: a}\n", 5, "is required"),
        ("name: N\nname: M\n", 2, "given twice"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, text: str, line: int, told: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InvalidArgument) as caught:
        agent.load(path)
    assert f"{path}:{line}" in caught.value.message
    assert told in caught.value.message


def test_a_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"absent\.yaml"):
        agent.load(tmp_path / "absent.yaml")


def test_a_written_card_reads_the_same(recipe_file: Path, tmp_path: Path) -> None:
    card = agent.load(recipe_file.parent / "agent.yaml")
    agent.write(card, tmp_path / "new" / "agent.yaml", head="where it is from")
    assert agent.load(tmp_path / "new" / "agent.yaml") == card
    assert (tmp_path / "new" / "agent.yaml").read_text(encoding="utf-8").startswith("# where it is from\n")
