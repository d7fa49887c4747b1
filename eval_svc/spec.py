"""What an evaluation is asked to do, as plain data that the store keeps as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pydantic import TypeAdapter

from chatmill.errors import FieldViolation, InvalidArgument
from eval_svc.verdict import Gate


@dataclass(frozen=True, slots=True)
class TargetSpec:
    """Something that answers: a model of the mesh, or a server that speaks the OpenAI protocol.

    Attributes:
        model: `models/{id}`, a version or alias of it; or, with `base_url`, the name of the model there.
        base_url: of an OpenAI-compatible server; empty: the mesh.
        api_key_file: file that holds the key of that server; empty: none.
        display_name: for reports; empty: the model's name.
    """

    model: str
    base_url: str = ""
    api_key_file: str = ""
    display_name: str = ""


@dataclass(frozen=True, slots=True)
class ReplaySpec:
    """A suite made from held-back conversations.

    Attributes:
        dataset: `datasets/{id}`; only its test split is read.
        max_conversations: drawn by the run's seed; 0: all.
        max_turns: agent turns of each, evenly spread; 0: all.
        pass_ratio: likeness to the real reply that passes, 0 to 100.
    """

    dataset: str
    max_conversations: int = 0
    max_turns: int = 0
    pass_ratio: float = 60.0


@dataclass(frozen=True, slots=True)
class JudgeSpec:
    """The model that answers judge criteria.

    Attributes:
        gates: hard criteria decide. Off until the judge has been calibrated against people; they count as soft then.
        allow_self: let a model judge itself, which flatters.
    """

    target: TargetSpec
    gates: bool = False
    allow_self: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """What to run against what; see the contract's `EvaluationSpec` for each field. Exactly one of `suite`, `replay`
    is set."""

    candidate: TargetSpec
    suite: str = ""
    replay: ReplaySpec | None = None
    baseline: TargetSpec | None = None
    trials: int | None = None
    seed: int = 0
    concurrency: int | None = None
    system_prompt: str = ""
    gate: Gate = field(default_factory=Gate)
    tags: tuple[str, ...] = ()
    max_output_tokens: int = 256
    temperature: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)
    judge: JudgeSpec | None = None
    customer: TargetSpec | None = None
    turn_timeout_s: float = 60.0
    latency_turns: int | None = None
    stop_early: bool = False

    def check(self) -> None:
        """Raise InvalidArgument with every field that is out of range."""
        problems = []

        def need(ok: bool, name: str, description: str) -> None:
            if not ok:
                problems.append(FieldViolation(f"spec.{name}", description))

        need(bool(self.suite) != (self.replay is not None), "suite", "set either scenario_suite or replay_suite")
        need(self.trials is None or 1 <= self.trials <= 100, "trials", f"must be from 1 to 100, not {self.trials}")
        need(self.concurrency is None or 1 <= self.concurrency <= 512, "concurrency", "must be from 1 to 512")
        need(1 <= self.max_output_tokens <= 32_768, "max_output_tokens", "must be from 1 to 32768")
        need(0 <= self.temperature <= 2, "temperature", f"must be from 0 to 2, not {self.temperature}")
        need(0.1 <= self.turn_timeout_s <= 3600, "turn_timeout", "must be from 0.1 s to an hour")
        need(self.latency_turns is None or 0 <= self.latency_turns <= 1000, "latency_turns", "must be from 0 to 1000")
        gate = self.gate
        for name in ("min_pass_rate", "min_pass_hat_k"):
            value = getattr(gate, name)
            need(value is None or 0 <= value <= 1, f"gate.{name}", f"must be from 0 to 1, not {value}")
        value = gate.min_difference
        need(value is None or -1 <= value <= 1, "gate.min_difference", f"must be from -1 to 1, not {value}")
        need(gate.max_critical is None or gate.max_critical >= 0, "gate.max_critical", "must be 0 or more")
        if self.replay is not None:
            replay = self.replay
            need(0 <= replay.pass_ratio <= 100, "replay_suite.pass_ratio", "must be from 0 to 100")
            need(replay.max_conversations >= 0, "replay_suite.max_conversations", "must be 0 or more")
            need(replay.max_turns >= 0, "replay_suite.max_turns", "must be 0 or more")
        if self.judge is not None and not self.judge.allow_self:
            judged = {(t.model, t.base_url) for t in (self.candidate, self.baseline) if t is not None}
            own = (self.judge.target.model, self.judge.target.base_url)
            need(
                own not in judged,
                "judge",
                "is a model under test, which flatters itself; name another or set allow_self",
            )
        if problems:
            raise InvalidArgument("; ".join(f"{p.field}: {p.description}" for p in problems), violations=problems)

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Spec:
        """Back from `to_json`."""
        return _SPEC.validate_python(data)


_SPEC = TypeAdapter(Spec)
