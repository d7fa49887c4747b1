"""States of prompt beginnings that were computed before, such as a system prompt that every conversation shares.

Prompts are cut into blocks. A block is found by the block before it and its own tokens, so equal beginnings share
blocks and no two different ones ever meet. The first block hangs on a root that stands for (adapter, salt); the
adapter's identity is a number that the engine gives on every load, so a new revision under an old name finds nothing.

This module knows no model; states are whatever `RowStore.take` returned.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

BLOCK = 32
"""Tokens per block: small enough to share most of a prompt, large enough that a block is one cheap copy."""


@dataclass(slots=True)
class _Block:
    number: int
    states: list[Tensor]


class PrefixCache:
    """Blocks by least recent use.

    Args:
        capacity: most positions kept; 0 keeps none.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity // BLOCK
        self._blocks: OrderedDict[tuple[Hashable, tuple[int, ...]], _Block] = OrderedDict()
        self._next = 0
        self.lookup_tokens = self.hit_tokens = 0

    @property
    def tokens(self) -> int:
        """Positions kept now."""
        return len(self._blocks) * BLOCK

    def find(self, root: Hashable, prompt: Sequence[int]) -> list[list[Tensor]]:
        """States of the longest known beginning, block by block; never the whole prompt, since its end needs logits."""
        found = []
        path = []
        parent: Hashable = root
        for start in range(0, len(prompt) - BLOCK, BLOCK):
            key = (parent, tuple(prompt[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                break
            found.append(block.states)
            path.append(key)
            parent = block.number
        # Deepest first, so that a parent is never older than its children and eviction takes leaves.
        for key in reversed(path):
            self._blocks.move_to_end(key)
        self.lookup_tokens += len(prompt)
        self.hit_tokens += len(found) * BLOCK
        return found

    def missing(self, root: Hashable, prompt: Sequence[int]) -> range:
        """Starts of the full blocks of a prompt that are not kept yet."""
        parent: Hashable = root
        stop = len(prompt) - len(prompt) % BLOCK if self._capacity else 0
        for start in range(0, stop, BLOCK):
            block = self._blocks.get((parent, tuple(prompt[start : start + BLOCK])))
            if block is None:
                return range(start, min(stop, self._capacity * BLOCK), BLOCK)
            parent = block.number
        return range(0)

    def add(self, root: Hashable, prompt: Sequence[int], states: Sequence[list[Tensor]]) -> None:
        """Keep the blocks that `missing` named, in its order."""
        parent: Hashable = root
        new = iter(states)
        path = []
        for start in range(0, len(prompt) - len(prompt) % BLOCK, BLOCK):
            key = (parent, tuple(prompt[start : start + BLOCK]))
            block = self._blocks.get(key)
            if block is None:
                state = next(new, None)
                if state is None:
                    break
                block = self._blocks[key] = _Block(self._next, state)
                self._next += 1
            path.append(key)
            parent = block.number
        for key in reversed(path):
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        self._blocks.clear()
