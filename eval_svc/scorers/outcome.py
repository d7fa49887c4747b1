"""Checks of what the agent did: action and handoff."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.scorers.words import Texts, listed
from eval_svc.text import plain


@SCORERS.register("action")
@dataclass(frozen=True)
class Action(Check):
    """Passes if the reply calls a tool.

    Attributes:
        name: the tool.
        arguments: those that must be among the call's arguments, compared after normalisation.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    error = "wrong_answer"
    forbidden_error = "false_action"

    def score(self, view: View) -> Finding:
        """Evidence is the call."""
        calls = [call for call in view.reply.tool_calls if call.name == self.name]
        for call in calls:
            if all(plain(str(call.arguments.get(k, ""))) == plain(str(v)) for k, v in self.arguments.items()):
                return Finding("pass", 1.0, f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
        made = ", ".join(call.name for call in view.reply.tool_calls) or "none"
        return Finding("fail", 0.0, note=f"{self.name} called with other arguments" if calls else f"calls made: {made}")


@SCORERS.register("handoff")
@dataclass(frozen=True)
class Handoff(Check):
    """Passes if the reply passes the customer to a person.

    Attributes:
        reason: the texts of which one must be in the reason given; empty: any reason.
    """

    reason: Texts = ()

    error = "missed_handoff"
    forbidden_error = "needless_handoff"

    def __post_init__(self) -> None:
        if self.reason:
            listed(self.reason)

    def score(self, view: View) -> Finding:
        """Evidence is the reason that was given."""
        if not view.reply.handed_over:
            return Finding("fail", 0.0, note="no handover")
        given = view.reply.handoff_reason or ""
        wanted = listed(self.reason) if self.reason else ()
        right = not wanted or any(plain(w) in plain(given) for w in wanted)
        return Finding(verdict(right), float(right), given, "" if right else f"another reason: {given}")
