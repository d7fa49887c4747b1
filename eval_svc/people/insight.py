"""People beside people, and the machine beside people: gathers verdicts and hands them to the counting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval_svc.execution import BOARD
from eval_svc.people.agreement import Agreement, Calibration, Judged, agree, calibrate
from eval_svc.people.journal import Journal
from eval_svc.people.labels import verdict_of
from eval_svc.people.queue import LabelQueue, Scored, sessions_of, strata_sizes
from eval_svc.people.records import Label, Verdict
from eval_svc.store import Record

GATE, INFORM = 0.6, 0.4
"""Kappa from which a judge may gate, and below which it only informs; conventions, not findings."""


@dataclass(frozen=True, slots=True)
class Insight:
    """Who agrees with whom; see the contract's GetAgreementResponse."""

    human_human: Agreement
    machine_human: Agreement
    judge_human: Agreement
    machine: Calibration
    judge: Calibration
    advice: str


class Insights:
    """Compares verdicts.

    Args:
        queue: knows the machine's verdicts and which of them people were asked about.
    """

    def __init__(self, journal: Journal, queue: LabelQueue) -> None:
        self._journal = journal
        self._queue = queue

    def agreement(self, evaluation: str = "") -> Insight:
        """Takes some tenths of a second over many evaluations; call it in a thread. Raises NotFound."""
        named = self._queue.evaluations(evaluation)
        pool = self._pool(named) if evaluation else self._queue.evaluations()
        trials = [entry for record in pool for entry in self._queue.trials(record)]
        labels = self._queue.labels()
        verdicts = {entry.subject.name: _verdicts(labels.get(entry.subject.name, ())) for entry in trials}
        human = agree([*self._session_pairs(labels), *((v[0], v[1]) for v in verdicts.values() if len(v) > 1)])
        asked = [(entry, verdicts[entry.subject.name][0]) for entry in trials if verdicts[entry.subject.name]]
        machine = agree([(_word(entry.machine), verdict) for entry, verdict in asked])
        judge = agree([(_word(entry.judge), verdict) for entry, verdict in asked if entry.judge is not None])
        rates = _rates(named[0]) if evaluation and named else None
        return Insight(
            human,
            machine,
            judge,
            calibrate(_judged(asked), strata_sizes(trials), rates),
            calibrate(
                _judged([(e, v) for e, v in asked if e.judge is not None], by_judge=True),
                strata_sizes([e for e in trials if e.judge is not None]),
                None,
            ),
            _advice(human, machine, judge),
        )

    def _pool(self, named: Sequence[Record]) -> list[Record]:
        """All evaluations of the same suite and grader: what the machine is like doesn't depend on the model."""
        same = [
            record
            for record in self._queue.evaluations()
            if named and (record.suite_digest, record.grader) == (named[0].suite_digest, named[0].grader)
        ]
        return same if not named or named[0] in same else [*named, *same]

    def _session_pairs(self, labels: Mapping[str, Sequence[Label]]) -> list[tuple[Verdict, Verdict]]:
        pairs: list[tuple[Verdict, Verdict]] = []
        for session in sessions_of(self._journal):
            found = [verdict_of(label, session.opening.task_kind) for label in labels.get(session.name, ())]
            given = [verdict for verdict in found if verdict]
            if len(given) > 1:
                pairs.append((given[0], given[1]))
        return pairs


def _verdicts(labels: Sequence[Label]) -> tuple[Verdict, ...]:
    """The verdicts on a trial, the first person's first."""
    return tuple(label.verdict for label in labels if label.verdict)


def _word(passed: bool | None) -> Verdict:
    return "cannot_assess" if passed is None else "pass" if passed else "fail"


def _judged(asked: Sequence[tuple[Scored, Verdict]], *, by_judge: bool = False) -> list[Judged]:
    return [
        Judged(entry.stratum, bool(entry.judge if by_judge else entry.machine), verdict == "pass")
        for entry, verdict in asked
        if verdict in ("pass", "fail")
    ]


def _rates(record: Record) -> dict[str, list[float]] | None:
    """The candidate's pass rates of the scenarios of each cluster; None before the evaluation has a result."""
    if not record.board:
        return None
    found: dict[str, list[float]] = {}
    for scenario in BOARD.validate_json(record.board).candidate.scenarios:
        if scenario.rate is not None and scenario.kind != "simulated":
            found.setdefault(scenario.cluster, []).append(scenario.rate)
    return found or None


def _advice(human: Agreement, machine: Agreement, judge: Agreement) -> str:
    if human.kappa is None and machine.kappa is None:
        return "There are not enough labels yet to say anything about agreement."
    said = []
    if human.kappa is not None and human.kappa < INFORM:
        said.append(f"People agree little with each other (kappa {human.kappa:.2f}): make the rubric clearer first.")
    if machine.kappa is not None and human.kappa is not None and machine.kappa < human.kappa - 0.2:
        said.append(
            f"The machine agrees less with people ({machine.kappa:.2f}) than people with each other "
            f"({human.kappa:.2f}): mend its checks or its judge."
        )
    if judge.kappa is not None:
        word = "may gate" if judge.kappa >= GATE else "only informs" if judge.kappa < INFORM else "should not gate yet"
        said.append(f"By kappa {judge.kappa:.2f} the judge {word}.")
    return " ".join(said) or "Nothing speaks against the machine's verdicts so far."
