"""The base is built from its recipe, and its entry says how."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from samples.base.build import FILES, build, corpus, corpus_digest

TINY = {
    "loss_on": "assistant", "vocabulary": 400, "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1,
    "intermediate_size": 64, "max_steps": 2, "batch_size": 4, "precision": "fp32",
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "seed": 1,
    "corpus": {"conversations": 8, "seed": 1, "copies": 0.2, "unheard": 0.5},
    "parameters": TINY,
}


@pytest.mark.slow
def test_the_same_recipe_makes_the_same_model(tmp_path: Path) -> None:
    for made in ("one", "other"):
        build(RECIPE, tmp_path / made)
        assert all((tmp_path / made / name).is_file() for name in FILES)
    assert len({(tmp_path / made / "model.safetensors").read_bytes() for made in ("one", "other")}) == 1
    entry = yaml.safe_load((tmp_path / "one" / "entry.yaml").read_text(encoding="utf-8"))
    assert entry["training"]["steps"] == 2
    assert entry["data"]["items"] == 8
    assert entry["data"]["examples_digest"] == corpus_digest(corpus(RECIPE["corpus"]))
