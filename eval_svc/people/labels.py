"""What makes a label right, and what verdict follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from chatmill.errors import FieldViolation, InvalidArgument
from chatmill.plugins import nearest
from eval_svc.people.records import EndForm, Label, TaskKind, Verdict
from eval_svc.taxonomy import ERROR_CLASSES, Severity, worst

MAX_NOTE = 4000
"""Characters of a note or a passage; longer ones are refused."""

_MARKS = ("correct", "helpful", "tone", "confidence")
_PSEUDONYM = re.compile(r"\w(?:[\w .-]{0,30})[\w.]")


def check_pseudonym(name: str, field: str) -> None:
    """Raises InvalidArgument unless it is 2 to 32 letters, digits, spaces, hyphens, dots or underscores."""
    if not _PSEUDONYM.fullmatch(name):
        raise InvalidArgument.field(
            field,
            "must be a pseudonym of 2 to 32 letters, digits, spaces, hyphens, dots or underscores; no e-mail address",
        )


def check_label(label: Label) -> None:
    """Raises InvalidArgument with one violation for each field that is wrong."""
    check_pseudonym(label.author, "label.author")
    found = [*_problems(label)]
    if found:
        raise InvalidArgument("; ".join(f"{v.field}: {v.description}" for v in found), violations=found)


def _problems(label: Label) -> Iterator[FieldViolation]:
    for name in label.error_classes:
        if name not in ERROR_CLASSES:
            yield FieldViolation(
                "label.error_classes",
                f"{name!r} is no class of error{nearest(name, ERROR_CLASSES)}; GetTestGuide lists them",
            )
    for field in ("note", "evidence"):
        if len(getattr(label, field)) > MAX_NOTE:
            yield FieldViolation(f"label.{field}", f"must be at most {MAX_NOTE} characters")
    form = label.form or EndForm()
    for mark in _MARKS:
        value = getattr(form, mark)
        if value is not None and not 1 <= value <= 5:
            yield FieldViolation(f"label.form.{mark}", f"must be 1 to 5, not {value}")


def severity_of(error_classes: tuple[str, ...]) -> Severity | None:
    """The worst severity of the classes, None without any."""
    return worst(ERROR_CLASSES[name].severity for name in error_classes if name in ERROR_CLASSES)


def verdict_of(label: Label, task: TaskKind | None) -> Verdict:
    """Whether the person passes the conversation: the verdict given, or what follows from the form.

    On a task to break the model only breaking it fails; on any other task the goal must be met as well. Half-met goals,
    and forms that don't say, leave it open.
    """
    if label.verdict or label.form is None or task is None:
        return label.verdict
    form = label.form
    if form.broke_it:
        return "fail"
    if task == "break":
        return "" if form.broke_it is None else "pass"
    verdicts: dict[str, Verdict] = {"yes": "pass", "no": "fail", "partly": "cannot_assess"}
    return verdicts.get(form.goal_met, "")
