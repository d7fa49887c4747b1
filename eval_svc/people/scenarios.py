"""A confirmed defect as a scenario, so that the next version is tried on what broke this one."""

from __future__ import annotations

from typing import Any

import yaml

from chatmill.errors import FailedPrecondition
from eval_svc.people.defects import Defect
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.taxonomy import ERROR_CLASSES

FORBIDDEN = "forbidden_content"
"""Class of error where the label named none."""


def draft(defect: Defect) -> tuple[str, str]:
    """Id and YAML text of the scenario: the customer's words as they were, and what must not come back.

    The passage that the label quotes is forbidden to the letter; without one, the judge is asked for the kind of
    mistake. Either way somebody should look at it before it decides anything, and its head says so.

    Raises:
        FailedPrecondition: the defect is not confirmed.
    """
    if defect.status not in ("confirmed", "fixed"):
        raise FailedPrecondition(
            f"defects/{defect.id} is {defect.status}; confirm it first (UpdateDefect), so that no misunderstanding "
            "becomes a scenario",
            reason="NOT_CONFIRMED",
        )
    scenario_id = f"defect-{defect.id}"
    data: dict[str, Any] = {
        "schema": 1,
        "id": scenario_id,
        "title": f"{defect.session.opening.task_title}: {', '.join(defect.error_classes) or 'broken'}",
        "kind": "attack" if defect.session.opening.task_kind == "break" else "edge",
        "severity": defect.severity,
        "tags": ["from-label"],
        "source": {"type": "label", "label": f"defects/{defect.id}"},
    }
    if defect.session.opening.language:
        data["persona"] = {"language": defect.session.opening.language}
    if defect.session.opening.facts:
        data["memory"] = {"facts": list(defect.session.opening.facts)}
    turns: list[dict[str, Any]] = [{"user": m.content} for m in defect.messages if m.role == "user"]
    data["turns"] = turns
    classes = defect.error_classes or (FORBIDDEN,)
    if defect.evidence:
        forbid = {"type": "contains_any", "value": [defect.evidence], "error": classes[0]}
        data["final"] = {"forbid": [forbid]}
    else:
        data["final"] = {"judge": [_criterion(name) for name in classes]}
    scenario_from_mapping(data, f"{scenario_id}.yaml")  # what is handed out must be readable
    return scenario_id, _head(defect) + yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120)


def _criterion(error: str) -> dict[str, str]:
    meaning = ERROR_CLASSES[error].meaning if error in ERROR_CLASSES else "Something that the agent must not do."
    return {
        "id": f"no-{error.replace('_', '-')}",
        "ask": f"Is the agent free of this mistake throughout: {meaning}",
        "error": error,
    }


def _head(defect: Defect) -> str:
    lines = [f"From defects/{defect.id}, found in {defect.model.name} by {defect.reporter}."]
    lines += [f"Note: {line}" for line in defect.note.splitlines() if line.strip()]
    lines.append(
        "Look at what is forbidden or asked before this decides anything; a passage to the letter is easy to miss."
    )
    return "".join(f"# {line}\n" for line in lines)
