"""The labelled examples of the detectors, and how good each detector is on them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatmill import located_yaml
from eval_svc.glitches.base import DETECTORS, Scene
from eval_svc.outcome import refusal
from eval_svc.transcript import Failure, Reply, ToolCall

FILE = Path(__file__).parent / "examples.yaml"


@dataclass(frozen=True, slots=True)
class Example:
    """A reply with what a detector must say about it."""

    detector: str
    positive: bool
    scene: Scene


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a detector is on its examples.

    Attributes:
        precision, recall: 0 to 1; None where nothing was found or nothing was to be found.
        wrong: the replies that it gets wrong, shortened, each with what it should have said.
    """

    name: str
    positives: int
    negatives: int
    precision: float | None
    recall: float | None
    wrong: tuple[str, ...]


@lru_cache(maxsize=1)
def examples() -> tuple[Example, ...]:
    """All labelled examples, in the order of the file."""
    data: dict[str, dict[str, list[Any]]] = located_yaml.read(FILE).data
    return tuple(
        Example(detector, label == "positive", _scene(entry))
        for detector, labels in data.items()
        for label, entries in labels.items()
        for entry in entries
    )


def _scene(entry: str | dict[str, Any]) -> Scene:
    if isinstance(entry, str):
        return Scene(Reply(text=entry, finish_reason="stop", total_ms=500), user="")
    failure = entry.get("failure")
    calls = tuple(ToolCall(name) for name in entry.get("actions", ()))
    reply = Reply(
        text=entry.get("reply", "") * entry.get("times", 1),
        tool_calls=calls,
        finish_reason=entry.get("finish", "" if failure else "stop"),
        first_token_ms=entry.get("first_token_ms"),
        total_ms=entry.get("total_ms", 500),
        failure=Failure(failure, entry.get("status", "UNAVAILABLE"), "as labelled") if failure else None,
    )
    return Scene(
        reply,
        user=entry.get("user", ""),
        earlier=tuple(entry.get("earlier", ())),
        system=entry.get("system", ""),
        known=entry.get("known", ""),
        canaries=tuple(entry.get("canaries", ())),
        language=entry.get("language", ""),
    )


def finds(detector: str, scene: Scene) -> bool:
    """Whether the detector says yes; `refusal` is the pattern behind the outcome of a dialogue."""
    if detector == "refusal":
        return refusal(scene.reply.text) is not None
    return DETECTORS[detector](scene) is not None


@lru_cache(maxsize=1)
def measure() -> tuple[Quality, ...]:
    """Precision and recall of every detector on its examples."""
    found = []
    for name in dict.fromkeys(e.detector for e in examples()):
        mine = [(e, finds(name, e.scene)) for e in examples() if e.detector == name]
        hits = sum(1 for e, said in mine if e.positive and said)
        said_yes = sum(1 for _, said in mine if said)
        positives = sum(1 for e, _ in mine if e.positive)
        wrong = tuple(
            f"{'missed' if e.positive else 'false alarm'}: {e.scene.reply.text[:60]}"
            for e, said in mine
            if said != e.positive
        )
        found.append(
            Quality(
                name=name,
                positives=positives,
                negatives=len(mine) - positives,
                precision=hits / said_yes if said_yes else None,
                recall=hits / positives if positives else None,
                wrong=wrong,
            )
        )
    return tuple(found)
