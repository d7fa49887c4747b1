"""Parameters of the method `qlora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory_svc.methods.lora.config import LoraParameters
from factory_svc.methods.parameters import parameter


@dataclass(frozen=True, kw_only=True)
class QLoraParameters(LoraParameters):
    """LoRA's parameters and how the frozen base is quantised (Dettmers et al., 2023)."""

    quantisation: Literal["nf4", "fp4"] = parameter("nf4", "4-bit type of the frozen base; nf4 suits normal weights.")
    double_quantisation: bool = parameter(True, "Quantise the quantisation constants too; saves 0.4 bit per weight.")
