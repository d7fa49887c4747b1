"""The base is built stage by stage, in one go or in two."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from samples.base.build import FILES, build

TINY = {
    "loss_on": "assistant", "vocabulary": 400, "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1,
    "intermediate_size": 64, "max_steps": 2, "batch_size": 4, "precision": "fp32",
}  # fmt: skip
STAGES: list[dict[str, Any]] = [
    {"corpus": {"conversations": 8, "seed": 1, "copies": 0.2}, "parameters": TINY},
    {"corpus": {"conversations": 8, "seed": 2, "unheard": 1.0}, "parameters": {**TINY, "max_steps": 3}},
]


@pytest.mark.slow
def test_a_later_stage_goes_on_from_the_earlier_one(tmp_path: Path) -> None:
    build(STAGES[:1], 1, tmp_path / "first", None, None)
    build(STAGES, 1, tmp_path / "second", tmp_path / "first", None)
    build(STAGES, 1, tmp_path / "whole", None, None)
    for made in ("second", "whole"):
        assert all((tmp_path / made / name).is_file() for name in FILES)
        records = yaml.safe_load((tmp_path / made / "stages.yaml").read_text(encoding="utf-8"))
        assert [r["training"]["steps"] for r in records] == [2, 3]
        assert not any(r["training"]["parameters"]["weights"] for r in records), "no folder of this machine"
        assert (
            yaml.safe_load((tmp_path / made / "entry.yaml").read_text(encoding="utf-8"))["data"] == records[-1]["data"]
        )
    weights = [(tmp_path / made / "model.safetensors").read_bytes() for made in ("first", "second", "whole")]
    assert weights[0] != weights[1] == weights[2]
    with pytest.raises(ValueError, match="all 2 stages"):
        build(STAGES, 1, tmp_path / "third", tmp_path / "whole", None)
