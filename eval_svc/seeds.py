"""Seeds, the same on every machine and in every Python: by SHA-256, never by `hash()`."""

from __future__ import annotations

import hashlib


def derive(*key: object) -> int:
    """A seed from 0 to 2**31 - 1 that depends on every part of the key and on nothing else."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return int.from_bytes(digest[:4], "big") & 0x7FFF_FFFF
