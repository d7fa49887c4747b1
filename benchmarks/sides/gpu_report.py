"""Lines of the GPU benchmark, and what a step has to read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.sides.decode_loops import Timed
from benchmarks.sides.rounds import percentile


class Results:
    """Lines of all parts in one file, one JSON object each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, **row: Any) -> None:
        """Keep and show a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    def all(self) -> list[dict[str, Any]]:
        """What there is."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    @property
    def bandwidth(self) -> float:
        """Bytes per second of the copy; 0 if it was not measured."""
        return next((row["copy_gb_s"] * 1e9 for row in self.all() if "copy_gb_s" in row), 0.0)


class Report:
    """Lines of one precision.

    Args:
        results: where they go.
        precision: of the weights.
        weights: bytes that a step reads of them.
        position: bytes of keys and values per position.
        prompt: tokens.
        new: tokens.
    """

    def __init__(
        self, results: Results, precision: str, weights: float, position: int, *, prompt: int, new: int
    ) -> None:
        self._results, self._precision, self._weights, self._position = results, precision, weights, position
        self._mean, self._new = prompt + new / 2, new

    def row(
        self, side: str, batch: int, speed: float, firsts: list[float], step: float, failures: int, **more: Any
    ) -> None:
        """A side at one size; times in seconds."""
        read = self._weights + batch * (self._mean) * self._position
        whole = self._results.bandwidth
        self._results.add(
            precision=self._precision,
            side=side,
            requests=batch,
            tokens_per_s=round(speed, 1),
            ttft_p50_ms=round(percentile(firsts, 50) * 1e3, 1),
            ttft_p95_ms=round(percentile(firsts, 95) * 1e3, 1),
            step_ms=round(step * 1e3, 2),
            bandwidth=round(read / step / whole, 3) if step and whole else None,
            failures=failures,
            **more,
        )

    def note(self, side: str, **what: Any) -> None:
        """Something to know about a side."""
        self._results.add(precision=self._precision, note=side, **what)

    def guarded(self, side: str, batch: int, loop: Callable[[int, int], Timed]) -> None:
        """Warm a loop up and time it once."""
        try:
            # Long enough for every width that the timed round will have to be met twice, and so to be captured.
            loop(batch, self._new if side.endswith("-graph") else 4)
            timed = loop(batch, self._new)
        except Exception as error:
            self.note(side, requests=batch, error=f"{type(error).__name__}: {error}"[:300])
            return
        speed = batch * self._new / (timed.first + timed.rest)
        self.row(side, batch, speed, [timed.first], timed.rest / (self._new - 1), 0)


def weight_bytes(model: Any) -> int:
    """What a step reads of the weights: all but the embeddings, of which it reads a row per token."""
    total = sum(parameter.nbytes for parameter in model.parameters()) - model.get_input_embeddings().weight.nbytes
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    return int(total + sum(state.absmax.nbytes for state in states if state is not None))


def position_bytes(config: Any) -> int:
    """Keys and values of one position, in two bytes each."""
    size = config.hidden_size // config.num_attention_heads
    return int(2 * 2 * config.num_hidden_layers * config.num_key_value_heads * size)
