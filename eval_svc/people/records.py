"""What is kept about people: sessions, turns, labels, votes, as plain data, and how they are folded from events.

It knows no database, no model and no statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import TypeAdapter

from eval_svc.people.journal import Event
from eval_svc.transcript import Message, ToolCall

SessionKind = Literal["chat", "battle"]
TaskKind = Literal["ordinary", "break", "handover"]
Side = Literal["", "left", "right"]
Choice = Literal["left", "right", "tie", "both_bad"]
Thumb = Literal["", "up", "down"]
Verdict = Literal["", "pass", "fail", "cannot_assess"]
Goal = Literal["", "yes", "partly", "no"]
DefectStatus = Literal["open", "confirmed", "fixed", "rejected"]


@dataclass(frozen=True, slots=True)
class Model:
    """A version under test; both are empty where a session has no such model."""

    name: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True)
class Opening:
    """How a session began.

    Attributes:
        consent_version: which text the tester agreed to.
        task_title: in English, as it was then.
        model: of a conversation with one model; `left` and `right` of a comparison.
        model_hidden: the tester was not told which model it is.
        facts: what the model is told about the customer.
    """

    tester: str
    consent_version: str
    task: str
    task_kind: TaskKind
    task_title: str
    kind: SessionKind
    model: Model = field(default_factory=Model)
    left: Model = field(default_factory=Model)
    right: Model = field(default_factory=Model)
    model_hidden: bool = False
    facts: tuple[str, ...] = ()
    language: str = ""
    app_version: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing that the tester said, and the reply; the attributes are those of the contract's `TestTurn`.

    Attributes:
        number: sequence number of its event; 0 before it is kept.
        replaces: number of the turn that this one was asked for in place of; 0 if none.
        superseded: a later turn was asked for in place of this one.
    """

    user: str
    reply: str
    side: Side = ""
    tool_calls: tuple[ToolCall, ...] = ()
    handoff_reason: str | None = None
    finish_reason: str = ""
    status: str = "OK"
    started_at: float = 0.0
    first_token_ms: float | None = None
    total_ms: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    replaces: int = 0
    number: int = 0
    superseded: bool = False


@dataclass(frozen=True, slots=True)
class EndForm:
    """The form at the end of a session; the attributes are those of the contract."""

    goal_met: Goal = ""
    broke_it: bool | None = None
    correct: int | None = None
    helpful: int | None = None
    tone: int | None = None
    would_escalate: bool | None = None
    confidence: int | None = None
    sent: bool = False


@dataclass(frozen=True, slots=True)
class Label:
    """What a person says about a subject; the newest of an author on a subject holds.

    Attributes:
        subject: resource name of a turn, a session or a trial.
        time: seconds since the epoch.
        sequence: number of its event.
    """

    subject: str
    author: str
    thumb: Thumb = ""
    error_classes: tuple[str, ...] = ()
    note: str = ""
    evidence: str = ""
    verdict: Verdict = ""
    form: EndForm | None = None
    time: float = 0.0
    sequence: int = 0

    @property
    def empty(self) -> bool:
        """True if it says nothing, which takes an earlier one back."""
        said = (self.thumb, self.error_classes, self.note, self.evidence, self.verdict)
        return not any(said) and self.form in (None, EndForm())


@dataclass(frozen=True, slots=True)
class Vote:
    """Which side was better.

    Attributes:
        void_reason: why it doesn't count; empty if it does.
        time: seconds since the epoch.
    """

    choice: Choice
    void_reason: str = ""
    note: str = ""
    time: float = 0.0


@dataclass(frozen=True, slots=True)
class Session:
    """A session with all that was said and labelled in it.

    Attributes:
        created_at: seconds since the epoch.
        turns: in order of time, superseded ones included.
        labels: the newest of each author on each subject, empty ones left out.
        sequence: number of its first event.
    """

    id: str
    opening: Opening
    created_at: float
    sequence: int
    turns: tuple[Turn, ...] = ()
    labels: tuple[Label, ...] = ()
    vote: Vote | None = None
    ended_at: float | None = None

    @property
    def name(self) -> str:
        """Resource name."""
        return f"testSessions/{self.id}"

    @property
    def finished(self) -> bool:
        """True once the form was sent or the vote is in."""
        return self.ended_at is not None

    @property
    def form(self) -> EndForm:
        """What the tester said at the end."""
        own = (x for x in self.labels if x.subject == self.name and x.author == self.opening.tester and x.form)
        return next((x.form for x in own if x.form), EndForm())

    def turn_name(self, turn: Turn) -> str:
        """Resource name of a turn."""
        return f"{self.name}/turns/{turn.number}"

    def model_of(self, turn: Turn) -> Model:
        """Which version answered a turn."""
        opening = self.opening
        return {"left": opening.left, "right": opening.right}.get(turn.side, opening.model)

    def messages(self, until: Turn | None = None) -> tuple[Message, ...]:
        """The conversation of the side of `until` up to it, or all that is in force of a session with one side."""
        found: list[Message] = []
        for turn in self.turns:
            if turn == until or (not turn.superseded and (until is None or turn.side == until.side)):
                found += [Message("user", turn.user), Message("assistant", turn.reply)]
            if turn == until:
                break
        return tuple(found)


_OPENING = TypeAdapter(Opening)
_TURN = TypeAdapter(Turn)
_LABEL = TypeAdapter(Label)
_VOTE = TypeAdapter(Vote)


def payload_of(record: Opening | Turn | Label | Vote) -> dict[str, Any]:
    """A record as JSON, without what its event says already."""
    adapters: dict[type, TypeAdapter[Any]] = {Opening: _OPENING, Turn: _TURN, Label: _LABEL, Vote: _VOTE}
    payload: dict[str, Any] = adapters[type(record)].dump_python(record, mode="json")
    for known in ("number", "superseded", "subject", "author", "time", "sequence"):
        payload.pop(known, None)
    return payload


def label_of(event: Event) -> Label:
    """The label that an event keeps."""
    about = {"subject": event.subject, "author": event.author, "time": event.time, "sequence": event.sequence}
    return _LABEL.validate_python({**event.payload, **about})


def vote_of(event: Event) -> Vote:
    """The vote that an event keeps."""
    return _VOTE.validate_python({**event.payload, "time": event.time})


def opening_of(event: Event) -> Opening:
    """How the session of an event of kind `session` began."""
    return _OPENING.validate_python(event.payload)


def turn_of(event: Event) -> Turn:
    """The turn that an event keeps."""
    return replace(_TURN.validate_python(event.payload), number=event.sequence)


def newest_labels(labels: Iterable[Label]) -> tuple[Label, ...]:
    """The newest of each author on each subject, in order of time; those that were taken back are left out."""
    held = {(label.subject, label.author): label for label in sorted(labels, key=lambda label: label.sequence)}
    return tuple(sorted((x for x in held.values() if not x.empty), key=lambda label: label.sequence))


def fold(events: Sequence[Event]) -> Session | None:
    """The session that its events make; None if there are none."""
    if not events:
        return None
    first, turns, labels, vote, ended = events[0], [], [], None, None
    opening = opening_of(first)
    for event in events[1:]:
        if event.kind == "turn":
            turns.append(turn_of(event))
        elif event.kind == "label":
            label = label_of(event)
            labels.append(label)
            if ended is None and label.author == opening.tester and label.form is not None and label.form.sent:
                ended = event.time
        elif event.kind == "vote":
            vote, ended = vote_of(event), event.time
    gone = {turn.replaces for turn in turns}
    return Session(
        id=first.session,
        opening=opening,
        created_at=first.time,
        sequence=first.sequence,
        turns=tuple(replace(turn, superseded=turn.number in gone) for turn in turns),
        labels=newest_labels(labels),
        vote=vote,
        ended_at=ended,
    )
