"""What people are asked to judge: a stratified sample of machine-scored trials, and some testers' conversations again.

All critical failures and all split judgements are in; the rest by lot, the same lot in every process. What the machine
said is kept back, since a person who has read it no longer judges alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from chatmill.errors import NotFound
from eval_svc import seeds
from eval_svc.people.journal import Event, Journal
from eval_svc.people.records import Label, Session, fold, label_of, newest_labels
from eval_svc.people.subjects import TrialSubject
from eval_svc.result import Trial
from eval_svc.spec import Spec
from eval_svc.store import ENDED, Record, Store
from eval_svc.suite import Suite
from eval_svc.transcript import Message

Stratum = Literal["critical", "judge_split", "fail", "pass", "second_opinion"]
STRATA: tuple[Stratum, ...] = ("critical", "judge_split", "fail", "pass", "second_opinion")
"""In the order of the queue."""
SHARES: Mapping[Stratum, float] = {"critical": 1.0, "judge_split": 1.0, "fail": 0.5, "pass": 0.2}
DOUBLE = 0.2
"""Share of the sample that two people judge, and share of finished conversations that a second person does."""
NEWEST = 50
"""Evaluations that are looked at when none is named."""


@dataclass(frozen=True, slots=True)
class Item:
    """Something to judge.

    Attributes:
        name: the subject of the label.
        double: it wants two people.
        title: what the customer was after.
        policies: the policies that matter, in words.
    """

    name: str
    stratum: Stratum
    double: bool
    title: str
    messages: tuple[Message, ...]
    facts: tuple[str, ...]
    policies: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """A machine-scored trial of an evaluation, whether or not it is in the sample.

    Attributes:
        judge: the judge's verdict over all its criteria; None if there are none, or one could not be scored.
    """

    subject: TrialSubject
    stratum: Stratum
    machine: bool
    judge: bool | None

    @property
    def sampled(self) -> bool:
        """Whether people are asked about it."""
        return lot(self.subject.name, "queue") < SHARES[self.stratum]

    @property
    def double(self) -> bool:
        """Whether two people are."""
        return lot(self.subject.name, "double") < DOUBLE


def lot(name: str, purpose: str) -> float:
    """A number from 0 to 1 that depends on the name and the purpose alone."""
    return seeds.derive("people", purpose, name) / 0x8000_0000


def scored(evaluation: str, trials: Sequence[Trial], skipped: frozenset[str]) -> list[Scored]:
    """The trials that count in the pass rate: scored ones in the written wording.

    Args:
        skipped: ids of scenarios that never decide.
    """
    found = []
    for trial in trials:
        score, unit = trial.score, trial.unit
        if score.passed is None or unit.variant or unit.scenario in skipped:
            continue
        subject = TrialSubject(evaluation, unit)
        found.append(Scored(subject, _stratum(trial), score.passed, _judged(trial)))
    return found


def _stratum(trial: Trial) -> Stratum:
    score = trial.score
    if score.critical and not score.passed:
        return "critical"
    if any({"yes", "no"} <= set(check.votes) for check in score.checks()):
        return "judge_split"
    return "pass" if score.passed else "fail"


def _judged(trial: Trial) -> bool | None:
    verdicts = [check.verdict for check in trial.score.checks() if check.type == "judge" and check.verdict != "n/a"]
    if not verdicts or "unscored" in verdicts:
        return None
    return "fail" not in verdicts


class LabelQueue:
    """Asks people about machine verdicts.

    Args:
        store: of the evaluations.
    """

    def __init__(self, journal: Journal, store: Store) -> None:
        self._journal = journal
        self._store = store
        self._samples: dict[tuple[str, str, float | None], list[Scored]] = {}

    def evaluations(self, named: str = "") -> list[Record]:
        """The evaluation that is named, or the newest finished ones. Raises NotFound."""
        if not named:
            return [r for r in self._store.list(limit=NEWEST) if r.state in ENDED and r.suite is not None]
        record = self._store.get(named)
        if record is None:
            raise NotFound(f"there is no evaluation evaluations/{named}; ListEvaluations shows what there is")
        return [record] if record.suite is not None else []

    def trials(self, record: Record) -> list[Scored]:
        """All trials of an evaluation that count, kept until it is rescored."""
        key = (record.id, record.suite_digest + record.grader, record.ended_at)
        if record.state not in ENDED or key not in self._samples:
            assert record.suite is not None
            skipped = frozenset(s.id for s in Suite.from_snapshot(record.suite).scenarios if s.simulated)
            self._samples[key] = scored(record.id, list(self._store.trials(record.id)), skipped)
        return self._samples[key]

    def labels(self) -> dict[str, list[Label]]:
        """The labels that hold, by subject."""
        found: dict[str, list[Label]] = {}
        for label in newest_labels(label_of(event) for event in self._journal.of_kinds(["label"])):
            found.setdefault(label.subject, []).append(label)
        return found

    def open(self, author: str, evaluation: str, limit: int) -> tuple[list[Item], int, int]:
        """What wants a verdict of this person: the first items, how many there are, and how many verdicts are in.

        Raises:
            NotFound: no such evaluation.
        """
        records = {record.id: record for record in self.evaluations(evaluation)}
        labels = self.labels()
        wanted: list[tuple[int, float, Scored | Session]] = []
        done = 0
        for record in records.values():
            for entry in self.trials(record):
                given = [x for x in labels.get(entry.subject.name, ()) if x.verdict]
                done += len(given)
                asked = entry.sampled and all(x.author != author for x in given)
                if asked and len(given) < (2 if entry.double else 1):
                    wanted.append((STRATA.index(entry.stratum), lot(entry.subject.name, "order"), entry))
        if not evaluation:
            sessions, more = self._second_opinions(author, labels)
            wanted += [(STRATA.index("second_opinion"), lot(s.name, "order"), s) for s in sessions]
            done += more
        wanted.sort(key=lambda entry: entry[:2])
        items = [self._item(entry, records) for _, _, entry in wanted[:limit]]
        return items, len(wanted), done

    def _second_opinions(self, author: str, labels: Mapping[str, Sequence[Label]]) -> tuple[list[Session], int]:
        """Finished conversations that want a second person, and how many verdicts of that kind are in."""
        found, done = [], 0
        for session in sessions_of(self._journal):
            if not session.finished or session.opening.kind != "chat" or lot(session.name, "double") >= DOUBLE:
                continue
            others = [x for x in labels.get(session.name, ()) if x.verdict and x.author != session.opening.tester]
            done += len(others)
            if not others and author != session.opening.tester:
                found.append(session)
        return found, done

    def _item(self, entry: Scored | Session, records: Mapping[str, Record]) -> Item:
        if isinstance(entry, Session):
            opening = entry.opening
            return Item(
                entry.name, "second_opinion", True, opening.task_title, entry.messages(), opening.facts, policies=()
            )
        subject = entry.subject
        record, trial = records[subject.evaluation], self._store.trial(subject.evaluation, subject.unit)
        assert trial is not None
        assert record.suite is not None
        suite = Suite.from_snapshot(record.suite)
        scenario = next(s for s in suite.scenarios if s.id == subject.unit.scenario)
        policies = Spec.from_json(record.spec).policies
        messages = list(trial.transcript.history)
        for exchange, reply in trial.transcript.played:
            messages.append(Message("user", exchange.user))
            calls = [f"[{call.name} {call.arguments}]" for call in reply.tool_calls]
            messages.append(Message("assistant", "\n".join(part for part in (reply.text, *calls) if part)))
        return Item(
            name=subject.name,
            stratum=entry.stratum,
            double=entry.double,
            title=scenario.title or scenario.id,
            messages=tuple(messages),
            facts=scenario.memory.lines(),
            policies=tuple(policies[name] for name in scenario.policy if name in policies),
        )


def sessions_of(journal: Journal) -> list[Session]:
    """All sessions with all that happened in them, oldest first."""
    events: dict[str, list[Event]] = {}
    for event in journal.of_kinds(["session", "turn", "label", "vote"]):
        if event.session:
            events.setdefault(event.session, []).append(event)
    return [session for found in events.values() if (session := fold(found)) is not None]


def strata_sizes(trials: Sequence[Scored]) -> dict[str, int]:
    """How many trials each stratum has in all."""
    return dict(Counter(entry.stratum for entry in trials))
