"""What people say about each version of a model, beside what the machine says; the two are never made into one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from eval_svc.execution import BOARD
from eval_svc.people.defects import Defect
from eval_svc.people.labels import verdict_of
from eval_svc.people.records import EndForm, Label, Model, Session, Turn
from eval_svc.statistics import Interval, percentile, wilson
from eval_svc.store import Record


@dataclass(slots=True)
class HumanScore:
    """Counts of one version; see the contract's HumanScore for each field's meaning."""

    model: Model
    sessions: int = 0
    finished: int = 0
    replies: int = 0
    thumbs: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    votes: Counter[str] = field(default_factory=Counter)
    defects: int = 0
    forms: list[EndForm] = field(default_factory=list)
    first_token_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    evaluation: str = ""
    machine_rate: float | None = None
    machine_interval: Interval | None = None
    machine_error_rate: float | None = None
    flagged: int = 0

    @property
    def pass_rate(self) -> tuple[float, Interval] | None:
        """Share of finished conversations that pass, with its Wilson interval; None without any."""
        return _share(self.verdicts["pass"], self.verdicts["fail"])

    @property
    def win_rate(self) -> tuple[float, Interval] | None:
        """Wins among wins and losses, with its Wilson interval; None without any."""
        return _share(self.votes["win"], self.votes["loss"])

    @property
    def first_token_p50_ms(self) -> float:
        """Median time to the first text; 0 without replies."""
        return percentile(self.first_token_ms, 0.5)

    @property
    def total_p95_ms(self) -> float:
        """95th percentile of the time to the whole reply; 0 without replies."""
        return percentile(self.total_ms, 0.95)

    def mean(self, mark: str) -> float | None:
        """Mean of a mark over the forms that give it; None without any."""
        given = [value for form in self.forms if (value := getattr(form, mark)) is not None]
        return sum(given) / len(given) if given else None


def _share(yes: int, no: int) -> tuple[float, Interval] | None:
    return (yes / (yes + no), wilson(yes, yes + no)) if yes + no else None


def human_scores(
    sessions: Iterable[Session], defects: Iterable[Defect], evaluations: Sequence[Record]
) -> list[HumanScore]:
    """One score for each version that people tested, sorted by name, newest version first.

    Args:
        evaluations: newest first; the first that has results of a version as its candidate is shown beside it.
    """
    scores: dict[str, HumanScore] = {}

    def of(model: Model) -> HumanScore:
        return scores.setdefault(model.name, HumanScore(model))

    for session in sessions:
        _add_replies(session, of)
        if session.opening.kind == "battle":
            _add_vote(session, of)
        else:
            _add_session(session, of(session.opening.model))
    for defect in defects:
        if defect.status != "rejected" and defect.model.name:
            of(defect.model).defects += 1
    for record in reversed(evaluations):
        _add_machine(record, scores)
    return sorted(scores.values(), key=lambda score: _order(score.model.name))


def _order(name: str) -> tuple[str, int]:
    head, _, version = name.rpartition("/")
    return (head, -int(version)) if version.isdigit() else (name, 0)


def _add_replies(session: Session, of: Callable[[Model], HumanScore]) -> None:
    labels: dict[str, list[Label]] = {}
    for label in session.labels:
        labels.setdefault(label.subject, []).append(label)
    for turn in session.turns:
        _add_reply(of(session.model_of(turn)), turn, labels.get(session.turn_name(turn), ()))


def _add_reply(score: HumanScore, turn: Turn, labels: Sequence[Label]) -> None:
    score.replies += 1
    if turn.status == "OK":
        score.total_ms.append(turn.total_ms)
        if turn.first_token_ms is not None:
            score.first_token_ms.append(turn.first_token_ms)
    # the tester's own word on it; a second person's is for the agreement
    for label in labels[:1]:
        if label.thumb:
            score.thumbs[label.thumb] += 1
    named = {name for label in labels for name in label.error_classes}
    score.errors.update(named)
    score.flagged += bool(named)


def _add_session(session: Session, score: HumanScore) -> None:
    score.sessions += 1
    if not session.finished:
        return
    score.finished += 1
    score.forms.append(session.form)
    if session.opening.task_kind != "break":  # attempts to break it are no ordinary use
        own = Label(session.name, session.opening.tester, form=session.form)
        score.verdicts[verdict_of(own, session.opening.task_kind)] += 1


def _add_vote(session: Session, of: Callable[[Model], HumanScore]) -> None:
    if session.vote is None:
        return
    results: Mapping[str, tuple[str, str]] = {
        "left": ("win", "loss"),
        "right": ("loss", "win"),
        "tie": ("tie", "tie"),
        "both_bad": ("both_bad", "both_bad"),
    }
    both = ("void", "void") if session.vote.void_reason else results[session.vote.choice]
    for model, result in zip((session.opening.left, session.opening.right), both, strict=True):
        of(model).votes[result] += 1


def _add_machine(record: Record, scores: Mapping[str, HumanScore]) -> None:
    model = record.targets.get("candidate", {}).get("model", "")
    if model in scores and record.board and record.state == "succeeded":
        candidate = BOARD.validate_json(record.board).candidate
        score = scores[model]
        score.evaluation = f"evaluations/{record.id}"
        score.machine_rate, score.machine_interval = candidate.pass_rate, candidate.pass_rate_interval
        score.machine_error_rate = candidate.turn_error_rate
