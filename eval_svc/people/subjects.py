"""The names of what can be labelled: turns and sessions of testers, and machine-scored trials."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from chatmill.errors import InvalidArgument
from eval_svc.transcript import Unit

_SESSION = re.compile(r"testSessions/(?P<session>[0-9a-f]{1,32})(/turns/(?P<turn>[0-9]{1,18}))?")
_TRIAL = re.compile(
    r"evaluations/(?P<evaluation>[^/]+)/trials/(?P<arm>candidate|baseline)~(?P<scenario>[^/~]+)"
    r"~(?P<trial>[0-9]{1,6})~(?P<variant>[0-9]{1,6})"
)


@dataclass(frozen=True, slots=True)
class SessionSubject:
    """A session, or with a number not 0 one turn of it."""

    session: str
    turn: int = 0


@dataclass(frozen=True, slots=True)
class TrialSubject:
    """A machine-scored trial."""

    evaluation: str
    unit: Unit

    @property
    def name(self) -> str:
        """Resource name."""
        unit = self.unit
        return f"evaluations/{self.evaluation}/trials/{unit.arm}~{unit.scenario}~{unit.trial}~{unit.variant}"


def parse(name: str, field: str = "label.subject") -> SessionSubject | TrialSubject:
    """What a name stands for. Raises InvalidArgument for a name of another form."""
    if found := _SESSION.fullmatch(name):
        return SessionSubject(found["session"], int(found["turn"] or 0))
    if found := _TRIAL.fullmatch(name):
        arm: Literal["candidate", "baseline"] = "candidate" if found["arm"] == "candidate" else "baseline"
        return TrialSubject(
            found["evaluation"], Unit(arm, found["scenario"], int(found["trial"]), int(found["variant"]))
        )
    raise InvalidArgument.field(
        field,
        f"must be testSessions/{{id}}, testSessions/{{id}}/turns/{{n}} or the name of a queue item, not {name!r}",
    )


def session_id(name: str, field: str = "name") -> str:
    """The id in `testSessions/{id}`. Raises InvalidArgument for a name of another form."""
    found = _SESSION.fullmatch(name)
    if found is None or found["turn"]:
        raise InvalidArgument.field(field, f"must be testSessions/{{id}}, not {name!r}")
    return found["session"]


def turn_number(name: str, session: str, field: str) -> int:
    """The number in `testSessions/{session}/turns/{n}`, 0 for an empty name. Raises InvalidArgument for any other."""
    if not name:
        return 0
    found = _SESSION.fullmatch(name)
    if found is None or found["session"] != session or not found["turn"]:
        raise InvalidArgument.field(field, f"must name a turn of testSessions/{session}, not {name!r}")
    return int(found["turn"])
