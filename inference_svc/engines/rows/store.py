"""Key-value state of all rows in one block of memory.

A row is a slot. Position p of a row's sequence is column p of its slot, whatever its neighbours hold, so attention
over a row sums in the same order alone and in company, and a cached prefix is copied in without moving anything.
Columns past a row's length hold finite leftovers that masks hide; they are never NaN, because 0 times NaN is NaN.

This module knows no model, no request and no sampling.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerShape:
    """Heads and head size of one layer's keys and values."""

    key_heads: int
    key_size: int
    value_heads: int
    value_size: int

    @property
    def per_position(self) -> int:
        """Numbers kept per position."""
        return self.key_heads * self.key_size + self.value_heads * self.value_size


class RowStore:
    """Keys and values of `rows` slots and `columns` positions for every layer.

    Matrices of equal shape lie in one plane of shape [matrices, rows, heads, columns, size], so that moving a row or
    taking a prefix is one copy per plane; nearly all models have one plane.

    Args:
        layers: one shape per layer.
        dtype: of the states.
        device: where they lie.
        max_rows: slots that it may grow to.
        max_columns: positions that it may grow to.
        token_budget: most rows times columns, the bound on memory.
    """

    FIRST_ROWS = 8
    FIRST_COLUMNS = 256

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        dtype: torch.dtype,
        device: torch.device,
        max_rows: int,
        max_columns: int,
        token_budget: int,
    ) -> None:
        self.layers = tuple(layers)
        self.dtype, self.device = dtype, device
        self.max_rows, self.max_columns, self.token_budget = max_rows, max_columns, token_budget
        members: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for number, layer in enumerate(self.layers):
            members[layer.key_heads, layer.key_size].append((number, 0))
            members[layer.value_heads, layer.value_size].append((number, 1))
        self._members = dict(members)
        self.rows = self.columns = 0
        self.planes: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        """Per layer, views of shape [rows, heads, columns, size]."""
        self.generation = 0
        """Rises when the memory moves, so that holders of views know to take new ones."""
        self.release()

    def release(self) -> None:
        """Fall back to the first size. Only when no row is in use."""
        self.rows = self.columns = 0
        self.planes = []
        self._resize(min(self.FIRST_ROWS, self.max_rows), min(self.FIRST_COLUMNS, self.max_columns))

    def fits(self, rows: int, columns: int) -> bool:
        """Whether so many slots of so many positions are within the bounds."""
        rows, columns = self._rounded(rows, columns)
        return rows <= self.max_rows and columns <= self.max_columns and rows * columns <= self.token_budget

    def reserve(self, rows: int, columns: int) -> None:
        """Grow to at least so many slots and positions, keeping what is there."""
        if rows > self.rows or columns > self.columns:
            self._resize(*self._rounded(rows, columns))

    def _rounded(self, rows: int, columns: int) -> tuple[int, int]:
        """The size that `reserve` would take: doubled where the budget lets it, else what is needed."""
        wide = self.columns
        while wide < columns:
            wide *= 2
        wide = min(wide, self.max_columns)
        tall = self.rows
        while tall < rows:
            tall *= 2
        tall = min(tall, self.max_rows)
        if tall * wide > self.token_budget:
            tall, wide = max(rows, self.rows), max(columns, self.columns)
        return max(tall, rows), max(wide, columns)

    def _resize(self, rows: int, columns: int) -> None:
        old = self.planes
        self.planes = []
        for index, ((heads, size), members) in enumerate(self._members.items()):
            plane = torch.zeros(len(members), rows, heads, columns, size, dtype=self.dtype, device=self.device)
            if old:
                plane[:, : self.rows, :, : self.columns] = old[index]
                old[index] = torch.empty(0)
            self.planes.append(plane)
        self.rows, self.columns = rows, columns
        self.keys, self.values = [torch.empty(0)] * len(self.layers), [torch.empty(0)] * len(self.layers)
        for plane, members in zip(self.planes, self._members.values(), strict=True):
            for place, (number, kind) in enumerate(members):
                (self.values if kind else self.keys)[number] = plane[place]
        self.generation += 1

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a row to another slot."""
        for plane in self.planes:
            plane[:, target, :, :length] = plane[:, source, :, :length]

    def clear(self, slot: int) -> None:
        """Zero a slot, after a row that went bad may have left NaN in it."""
        for plane in self.planes:
            plane[:, slot].zero_()

    def take(self, slot: int, start: int, stop: int) -> list[Tensor]:
        """A copy of positions [start, stop) of a row, one tensor [matrices, heads, positions, size] per plane."""
        return [plane[:, slot, :, start:stop].clone() for plane in self.planes]

    def put(self, slot: int, start: int, states: Sequence[Tensor]) -> None:
        """Write what `take` returned at position `start` of a row."""
        for plane, state in zip(self.planes, states, strict=True):
            plane[:, slot, :, start : start + state.shape[2]] = state

    @property
    def bytes_per_position(self) -> int:
        """Memory of one position of one row over all layers."""
        return sum(layer.per_position for layer in self.layers) * self.dtype.itemsize

    @property
    def nbytes(self) -> int:
        """Memory held now."""
        return sum(plane.nbytes for plane in self.planes)
