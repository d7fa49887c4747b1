"""Digests of a step's inputs: equal digest, nothing to do again. Knows no service."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from chatmill import __version__

LABEL = "recipe-inputs"
"""Label of models and evaluations that a recipe made: the digest of what went into them."""
RECIPE_LABEL = "recipe"
"""Label of datasets that a recipe made: the recipe's name."""


def of(inputs: dict[str, Any]) -> str:
    """Digest of `inputs` (JSON values) and of this version of Chatmill, 32 hexadecimal digits.

    The version counts because a change of ours can change what comes out of equal inputs; a score is only comparable
    under the same grader.
    """
    canonical = json.dumps({"chatmill": __version__, **inputs}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]
