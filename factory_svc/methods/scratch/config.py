"""Parameters of the method `scratch`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from factory_svc.methods.parameters import GradientParameters, parameter


@dataclass(frozen=True, kw_only=True)
class ScratchParameters(GradientParameters):
    """Sizes of the new model and of its tokenizer; the defaults give about 5 million parameters.

    The shape follows Llama (Touvron et al., 2023): RMSNorm, rotary positions, SwiGLU, grouped-query attention.
    """

    hidden_size: int = parameter(256, "Width of the residual stream.", minimum=8, maximum=8192)
    layers: int = parameter(6, "Transformer blocks.", minimum=1, maximum=128)
    heads: int = parameter(8, "Attention heads; must divide hidden_size.", minimum=1, maximum=128)
    kv_heads: int = parameter(4, "Key and value heads; must divide heads.", minimum=1, maximum=128)
    intermediate_size: int = parameter(704, "Width inside the feed-forward blocks.", minimum=8, maximum=65536)
    rope_theta: float = parameter(10_000.0, "Base of the rotary position angles.", above=0)
    max_positions: int = parameter(1024, "Context the model is built for, in tokens.", minimum=16, maximum=1_048_576)
    tie_embeddings: bool = parameter(True, "Share the input and output embedding, which halves a small model.")
    vocabulary: int = parameter(
        6144, "Tokens of the byte-level BPE, special tokens included; fewer if the data has fewer.", minimum=300
    )
    tokenizer: str = parameter(
        "", "Folder of a tokenizer to use as it is, under factory.roots; empty trains one from the data.", folder=True
    )
    weights: str = parameter(
        "",
        "Folder of a model to go on from, under factory.roots, with its tokenizer; its own sizes hold. Empty starts "
        "at random.",
        folder=True,
    )
    save_dtype: Literal["bfloat16", "float32"] = parameter("bfloat16", "Type of the saved weights.")

    learning_rate: float = parameter(1e-3, "Peak learning rate of AdamW.", above=0, maximum=1)
    batch_size: int = parameter(16, "Conversations in one forward pass.", minimum=1, maximum=4096)
    weight_decay: float = parameter(0.1, "AdamW's decoupled weight decay.", minimum=0, maximum=1)
    max_length: int = parameter(512, "Longest training sequence, in tokens.", minimum=8, maximum=1_048_576)

    def conflicts(self) -> list[tuple[str, str]]:
        """Head counts that do not divide, and sequences longer than the positions."""
        found = []
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            found.append(("heads", f"must divide hidden_size = {self.hidden_size} into heads of even width"))
        if self.heads % self.kv_heads:
            found.append(("kv_heads", f"must divide heads = {self.heads}"))
        if self.max_length > self.max_positions:
            found.append(("max_length", f"must be at most max_positions = {self.max_positions}"))
        return found
