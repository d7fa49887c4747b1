"""Where the factory gets conversations from, as it sees it; `clients.py` implements it over the dataset service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from factory_svc.examples import Item


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """What the factory must know of a dataset before it trains on it.

    Attributes:
        name: `datasets/{id}`.
        digest: over its items.
        training_items: items of the training split.
    """

    name: str
    digest: str
    training_items: int


class ItemSource(Protocol):
    """Reads datasets."""

    async def describe(self, dataset: str) -> DatasetInfo:
        """The dataset. Raises NotFound, or Unavailable if the source can't be reached."""

    def training_items(self, dataset: str, languages: Sequence[str]) -> AsyncIterator[Item]:
        """The items of the training split in order, of these languages only (all if empty)."""
