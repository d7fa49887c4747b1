"""The operator's moderation policy: who looks where, what is done, and what clients may ask for instead."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from chatmill.errors import PermissionDenied
from chatmill.plugins import parse_parameters
from inference_svc.moderation.base import MODERATORS, ModerationContext, ModeratorEnvironment, Response, Stage
from inference_svc.moderation.guard import Guard, Rule


@dataclass(frozen=True)
class RuleSettings:
    """One entry of `inference.moderators`.

    Attributes:
        name: name of an installed moderator.
        response: what to do about a finding: `report`, `redact` or `block`.
        stages: where it looks: `input`, `output`, or both.
        fail_closed: for judges: block when the judge can't be asked, instead of letting the text pass.
        parameters: settings of the moderator.
    """

    name: str
    response: Literal["report", "redact", "block"] = "report"
    stages: tuple[Literal["input", "output"], ...] = ("input", "output")
    fail_closed: bool = False
    parameters: dict[str, Any] = field(default_factory=dict)


def build(settings: Sequence[Mapping[str, Any]], environment: ModeratorEnvironment) -> tuple[Rule, ...]:
    """The rules of a configuration.

    Raises:
        InvalidArgument: on `moderators[i]`: a key or a parameter is wrong.
        NotFound: no such moderator is installed.
    """
    rules = []
    for index, mapping in enumerate(settings):
        where = f"moderators[{index}]"
        entry = parse_parameters(RuleSettings, mapping, field=where)
        cls = MODERATORS.get(entry.name)
        parameters = parse_parameters(cls.Parameters, entry.parameters, field=f"{where}.parameters")
        rules.append(
            Rule(
                entry.name,
                cls(parameters, environment),
                Response(entry.response),
                frozenset(Stage(s) for s in entry.stages),
                entry.fail_closed,
            )
        )
    return tuple(rules)


class Moderation:
    """Opens guards for requests.

    Args:
        rules: the operator's rules.
        client_may_relax: whether a client may ask for reports only, or for no moderation.
    """

    def __init__(self, rules: Sequence[Rule] = (), *, client_may_relax: bool = True) -> None:
        self._relax = client_may_relax
        self._rules = {
            "default": tuple(rules),
            "report": tuple(replace(r, response=Response.REPORT) for r in rules),
            "enforce": tuple(
                replace(r, response=r.moderator.natural) if r.response is Response.REPORT else r for r in rules
            ),
            "off": (),
        }

    def check(self, mode: str) -> None:
        """Refuse a mode that the operator does not grant.

        Raises:
            PermissionDenied: reason `MODERATION_REQUIRED`.
        """
        if mode in ("report", "off") and not self._relax:
            raise PermissionDenied(
                f"moderating.mode: this service does not let clients choose {mode.upper()}. Leave the mode unset.",
                reason="MODERATION_REQUIRED",
            )

    def open(self, stage: Stage, mode: str, *, system_prompt: str = "", holdback: int = 0) -> Guard | None:
        """A guard over one text, or None if nothing looks at it."""
        rules = self._rules[mode]
        if not rules and not holdback:
            return None
        guard = Guard(rules, ModerationContext(stage, system_prompt), holdback)
        return None if guard.idle else guard
