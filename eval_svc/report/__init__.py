"""Reports of an evaluation: one HTML file, JUnit XML, JSONL."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eval_svc.evaluations import Evaluation
from eval_svc.report.html import render_html
from eval_svc.report.jsonl import render_jsonl
from eval_svc.report.junit import render_junit
from eval_svc.result import Trial
from eval_svc.suite import Suite

PIECE = 1024 * 1024
"""Bytes of a report that go into one message."""

RENDERERS: dict[str, Callable[[Evaluation, Suite, list[Trial]], bytes]] = {
    "html": render_html,
    "junit": render_junit,
    "jsonl": render_jsonl,
}
"""Each takes an evaluation with its board, its suite and its dialogues, and gives a file."""


def pieces(content: bytes) -> Iterator[bytes]:
    """The file in pieces; an empty file is one empty piece."""
    for start in range(0, max(len(content), 1), PIECE):
        yield content[start : start + PIECE]


__all__ = ["RENDERERS", "pieces", "render_html", "render_jsonl", "render_junit"]
