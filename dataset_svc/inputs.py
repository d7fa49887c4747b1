"""What decides the content of a dataset, so that the same need not be worked through twice."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from chatmill import __version__
from chatmill.errors import AlreadyExists
from dataset_svc.build import Plan
from dataset_svc.dataset import ConversationDataset
from dataset_svc.manifest import Manifest, SourceInfo


def _settings(plan: Plan) -> dict[str, Any]:
    return {
        "dataset_class": plan.dataset_class,
        "parameters": asdict(plan.rules.parameters),
        "split_seed": plan.seed,
        "test_fraction": plan.test_fraction,
        "limit": plan.limit,
    }


def digest(plan: Plan, sources: Sequence[SourceInfo]) -> str:
    """Digest over everything that decides the result, the code of the client's class included."""
    decisive = {
        **_settings(plan),
        "sources": [source.sha256 for source in sources],
        "code": [__version__, *_class_code(type(plan.rules))],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def _class_code(cls: type[ConversationDataset]) -> Iterator[str]:
    for base in cls.__mro__:
        if issubclass(base, ConversationDataset) and base is not ConversationDataset:
            try:
                code = inspect.getsource(base)
            except (OSError, TypeError):  # made in an interpreter, or shipped without source
                code = f"{base.__module__}.{base.__qualname__}"
            yield hashlib.sha256(code.encode()).hexdigest()


def difference(existing: Manifest, plan: Plan, sources: Sequence[SourceInfo]) -> str:
    """How the sources or settings differ, in words; empty if at most the code does."""
    if [s.sha256 for s in existing.sources] != [s.sha256 for s in sources]:
        return f"from {', '.join(s.path for s in existing.sources)}, SHA-256 {existing.sources[0].sha256[:12]}"
    for key, value in _settings(plan).items():
        before = getattr(existing, key)
        if json.dumps(before, sort_keys=True) != json.dumps(value, sort_keys=True):
            return f"{key} was {before!r}, now {value!r}"
    return ""


def same_request(existing: Manifest, plan: Plan) -> Manifest:
    """`existing`, if the plan asks for what made it.

    Raises:
        AlreadyExists: reason `REQUEST_ID_REUSED`; its request id was used for something else.
    """
    settings = {key: getattr(existing, key) for key in _settings(plan)}
    then = (existing.id, [s.path for s in existing.sources], existing.labels, settings)
    now = (plan.dataset_id, [shown for _, shown in plan.files], plan.labels, _settings(plan))
    if json.dumps(then, sort_keys=True) != json.dumps(now, sort_keys=True):
        raise AlreadyExists(
            f"request_id {plan.request_id!r} was used for another request, which made datasets/{existing.id}. "
            "Use a new one.",
            reason="REQUEST_ID_REUSED",
        )
    return existing
