"""Parameters of the method `lora`, and of all that build on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory_svc.methods.parameters import GradientParameters, parameter


@dataclass(frozen=True, kw_only=True)
class LoraParameters(GradientParameters):
    """Shape of the adapter (Hu et al., 2021); every linear layer of the blocks gets one by default."""

    rank: int = parameter(16, "Rank of the update matrices.", minimum=1, maximum=1024)
    alpha: float = parameter(32.0, "Scale; the update is multiplied by alpha / rank.", above=0)
    dropout: float = parameter(0.0, "Dropout on the adapter's input.", minimum=0, maximum=0.9)
    target_modules: str = parameter(
        "all-linear", "Layers to adapt: all-linear (the output head excluded) or names separated by commas."
    )
    last_blocks: int = parameter(
        0,
        "Adapt only so many of the last blocks; 0 adapts all. What the first blocks know of language then stays as it "
        "is, and a step takes less time.",
        minimum=0,
    )
    rank_stabilised: bool = parameter(
        False, "Scale by alpha / sqrt(rank) instead (Kalajdzievski, 2023), better at high rank."
    )
    save_dtype: Literal["float32", "bfloat16"] = parameter("float32", "Type of the saved adapter weights.")

    def conflicts(self) -> list[tuple[str, str]]:
        """An empty list of layers."""
        if not any(name.strip() for name in self.target_modules.split(",")):
            return [("target_modules", "must be all-linear or name at least one layer")]
        return []

    def targets(self) -> str | list[str]:
        """`target_modules` as PEFT wants it."""
        if self.target_modules == "all-linear":
            return self.target_modules
        return [name.strip() for name in self.target_modules.split(",") if name.strip()]
