"""What testers are asked to do: tasks from a file, handover tasks from the agent card, and what is agreed to.

It knows no session. Texts are kept in several languages side by side; English stands in for one that is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chatmill import agent
from chatmill.agent import AgentCard
from chatmill.errors import InvalidArgument
from chatmill.located_yaml import locate, read, refuse
from chatmill.plugins import nearest, parse_parameters
from eval_svc.people.records import TaskKind

SHIPPED = Path(__file__).with_name("guide.yaml")
FALLBACK = "en"
REASON = "INVALID_TASKS"

_HANDOVER_TITLES = {"en": "Hand over: {id}", "zh": "转人工：{id}"}
_HANDOVER_TEXTS = {
    "en": "Bring this about, in your own words: {when} The agent must hand over to a person.",
    "zh": "用您自己的话制造这种情况：{when} 客服必须转接人工。",
}


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to do. Texts are by language, ISO 639-1.

    Attributes:
        persona: who the tester plays; empty for oneself.
        facts: what the model is told about that customer.
    """

    id: str
    kind: TaskKind
    title: dict[str, str]
    instructions: dict[str, str]
    persona: dict[str, str] = field(default_factory=dict)
    facts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Consent:
    """What a tester agrees to.

    Attributes:
        version: raised whenever the text changes its meaning; kept with each session.
        text: by language.
    """

    version: str
    text: dict[str, str]


@dataclass(frozen=True, slots=True)
class Guide:
    """The file of tasks, with what the agent card adds.

    Attributes:
        card: the agent under test; None without one.
    """

    tasks: tuple[Task, ...]
    consent: Consent
    schema: int = 1
    card: AgentCard | None = None

    def task(self, task_id: str) -> Task:
        """The task of that id. Raises InvalidArgument that names the nearest."""
        found = {task.id: task for task in self.tasks}
        if task_id not in found:
            raise InvalidArgument.field(
                "task", f"there is no task {task_id!r}{nearest(task_id, found)}; GetTestGuide lists them"
            )
        return found[task_id]

    def check_consent(self, version: str) -> None:
        """Raises InvalidArgument unless the tester agreed to the text that holds now."""
        if version != self.consent.version:
            raise InvalidArgument.field(
                "consent_version",
                f"must be {self.consent.version!r}, the text that GetTestGuide shows now; ask the tester again",
            )


def spoken(texts: Mapping[str, str], language: str) -> str:
    """The text in that language, else in English, else in whichever there is; empty without any."""
    return texts.get(language) or texts.get(FALLBACK) or next(iter(texts.values()), "")


def load(tasks: Path | None, card: Path | None) -> Guide:
    """The guide from a file of tasks (the shipped one without it) and an agent card.

    Raises:
        InvalidArgument: reason `INVALID_TASKS` or `INVALID_AGENT_CARD`; every problem with file and line.
        NotFound: there is no such file.
    """
    described = agent.load(card) if card is not None else None
    document = read(tasks or SHIPPED)
    if not isinstance(document.data, dict):
        raise refuse([document.problem((), "is no list of tasks: it must be a mapping of keys")], reason=REASON)
    try:
        guide = parse_parameters(Guide, {k: v for k, v in document.data.items() if k != "card"}, field="")
    except InvalidArgument as error:
        found = [document.problem(locate(v.field), v.description) for v in error.violations]
        raise refuse(found, reason=REASON) from None
    problems = [
        document.problem(("tasks", i, "id"), f"{task.id!r} is used twice; ids are unique")
        for i, task in enumerate(guide.tasks)
        if task.id in {before.id for before in guide.tasks[:i]}
    ]
    if guide.schema != 1:
        problems.append(document.problem(("schema",), f"must be 1, not {guide.schema}"))
    if not guide.tasks:
        problems.append(document.problem(("tasks",), "must hold at least one task"))
    if problems:
        raise refuse(problems, reason=REASON)
    more = _from_card(described, guide.tasks) if described is not None else ()
    return Guide((*guide.tasks, *more), guide.consent, card=described)


def _from_card(card: AgentCard, known: Sequence[Task]) -> tuple[Task, ...]:
    """One task for each rule of handover."""
    taken = {task.id for task in known}
    return tuple(
        Task(
            id=f"handover-{rule.id}",
            kind="handover",
            title={language: text.format(id=rule.id) for language, text in _HANDOVER_TITLES.items()},
            instructions={language: text.format(when=rule.when) for language, text in _HANDOVER_TEXTS.items()},
        )
        for rule in card.handover
        if f"handover-{rule.id}" not in taken
    )
