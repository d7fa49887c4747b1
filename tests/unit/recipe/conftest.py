"""A small recipe on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

AGENT = """\
schema: 1
name: Nova
company: Fernhill
system_prompt: "You are {name} of {company}."
policies:
  - {id: returns, text: "14 days."}
handover:
  - {id: anger, reason: complaint, when: "The customer is angry."}
"""

RECIPE = """\
schema: 1
name: fern
agent: agent.yaml
dataset:
  sources: [talks.jsonl]
  class: shop
  test_fraction: 0.1
method:
  name: lora
  base: chatmill-tiny
  parameters: {rank: 8}
suite: suite
trials: 2
gate: {min_pass_rate: 0.85}
promote: live
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe with its card, its suite and its source."""
    folder = tmp_path / "client"
    (folder / "suite").mkdir(parents=True)
    (folder / "agent.yaml").write_text(AGENT, encoding="utf-8")
    (folder / "suite" / "one.yaml").write_text("id: one\n", encoding="utf-8")
    (folder / "talks.jsonl").write_text("{}\n", encoding="utf-8")
    path = folder / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path
