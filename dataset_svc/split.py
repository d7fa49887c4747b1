"""Which conversations are held back from training.

Decided per conversation by a hash of seed and id, so that it depends neither on the order of the file nor on the other
conversations, and adding some later moves none from one side to the other. Near-duplicates (`Conversation.near_key`)
follow the first of them: otherwise a held-back conversation would be scored after its twin was trained on.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from dataset_svc.conversation import Conversation

Split = Literal["train", "test"]
SPLITS: tuple[str, ...] = ("train", "test")

MAX_TEST_FRACTION = 0.9


def choose(identity: str, *, seed: int, test_fraction: float) -> Split:
    """The split of a conversation by its identity; about `test_fraction` of all identities are in `test`."""
    digest = hashlib.sha256(f"{seed}\x1f{identity}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < test_fraction * 2**64 else "train"


class Splitter:
    """Splits the conversations of one dataset, near-duplicates together. Remembers some 100 bytes per conversation.

    Attributes:
        near_duplicates: conversations so far that follow an earlier one.
    """

    def __init__(self, *, seed: int, test_fraction: float) -> None:
        self.near_duplicates = 0
        self._seed = seed
        self._test_fraction = test_fraction
        self._by_key: dict[bytes, Split] = {}

    def __call__(self, conversation: Conversation) -> Split:
        """The split of the next conversation."""
        key = bytes.fromhex(conversation.near_key())
        known = self._by_key.get(key)
        if known is not None:
            self.near_duplicates += 1
            return known
        identity = conversation.source_id or conversation.id
        self._by_key[key] = chosen = choose(identity, seed=self._seed, test_fraction=self._test_fraction)
        return chosen
