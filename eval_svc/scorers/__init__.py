"""The checks, one file per family; importing this package registers all built-in ones."""

from eval_svc.scorers import (
    judge,
    language,
    latency,
    memory,
    outcome,
    patterns,
    semantic,
    shape,
    similarity,
    structure,
    words,
)
from eval_svc.scorers.base import SCORERS, Finding, Scorer, Services, View

__all__ = [
    "SCORERS",
    "Finding",
    "Scorer",
    "Services",
    "View",
    "judge",
    "language",
    "latency",
    "memory",
    "outcome",
    "patterns",
    "semantic",
    "shape",
    "similarity",
    "structure",
    "words",
]
