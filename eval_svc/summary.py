"""The scores of one side of a run: what the scoreboard shows.

Pass rates are macro-averaged over scenarios; infrastructure failures and what could not be judged are counted and
left out of every rate. It knows no storage and no other side.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from eval_svc.prices import Price, price_of
from eval_svc.result import Trial
from eval_svc.scenario import Scenario
from eval_svc.statistics import Interval, pass_hat_k, percentile, rate_interval, upper_bound_of_zero, wilson
from eval_svc.suite import Suite
from eval_svc.timing import Timed


@dataclass(frozen=True, slots=True)
class Latency:
    """Times in milliseconds, as the evaluator saw them, of replies that came; with the most dialogues that ran
    beside them."""

    first_token_p50: float
    first_token_p95: float
    mean: float
    p50: float
    p95: float
    p99: float
    concurrency: int
    replies: int


@dataclass(frozen=True, slots=True)
class Handovers:
    """Handovers both ways, in dialogues; scenarios in which either is right are in neither count."""

    expected: int
    missed: int
    unexpected: int
    needless: int


@dataclass(frozen=True, slots=True)
class ScenarioSummary:
    """One scenario over all its trials.

    Attributes:
        trials: scored ones.
        passed: of those.
        rate: their share; None if none was scored.
        interval: Wilson over trials, which is right within one scenario.
        flaky: some passed and some did not.
        variants_agree: share of other wordings with the majority verdict of the written one; None without variants.
        first_error: the worst error class of the first failing trial; empty if all passed.
        cluster: scenarios of one cluster are drawn together when intervals are made.
    """

    id: str
    title: str
    kind: str
    trials: int
    passed: int
    rate: float | None
    interval: Interval
    flaky: bool
    score_mean: float | None
    score_min: float | None
    variants_agree: float | None
    p50_ms: float
    p95_ms: float
    critical: bool
    first_error: str
    cluster: str

    @property
    def majority(self) -> bool | None:
        """The verdict of more than half of the trials; a tie is a failure."""
        return None if self.rate is None else self.rate > 0.5


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """How one side did. Rates are 0 to 1, scores 0 to 100; see the contract's `Score` for each field's meaning.

    Attributes:
        critical_rate: share of scored dialogues with a critical error, and `critical_bound` the upper bound of it
            (95%): exact where none was seen, else Wilson's.
        glitch_rate: share of scored turns in which a detector found something.
        latency: of replies that were timed one at a time, if any were; else of the run's.
        latency_under_load: of the run's replies; None if `latency` is theirs.
        cut_histories: replies before which the endpoint left out the beginning of the history.
        judged_checks: checks that should have been judged, and `unscored` of them could not be.
    """

    target: str
    scenarios: tuple[ScenarioSummary, ...]
    trials: int
    pass_rate: float
    pass_rate_interval: Interval
    pass_hat_k: tuple[float, ...]
    mean_score: float
    turns: int
    turn_error_rate: float
    turn_error_interval: Interval
    conversation_error_rate: float
    conversation_error_interval: Interval
    critical_scenarios: tuple[str, ...]
    critical_rate: float
    critical_bound: float
    glitch_rate: float
    errors: dict[str, int]
    judged_checks: int
    unscored: int
    unscored_trials: int
    infra: int
    played: int
    handovers: Handovers
    latency: Latency
    tokens_in: int
    tokens_out: int
    price: Price
    robustness: float | None
    mean_ratio: float | None
    exact_rate: float | None
    latency_under_load: Latency | None = None
    cut_histories: int = 0

    @property
    def infra_rate(self) -> float:
        """Share of dialogues lost to infrastructure."""
        return self.infra / self.played if self.played else 0.0


def summarise(
    suite: Suite, trials: Sequence[Trial], target: str, priced_as: str = "", timed: Sequence[Timed] = ()
) -> ArmSummary:
    """The scores of one side; `trials` are its own, every wording included, `timed` the replies timed one at a time."""
    decisive = {s.id for s in suite.scenarios if not s.simulated}
    counted = [t for t in trials if t.unit.scenario in decisive]
    scored = [t for t in counted if t.score.passed is not None]
    main = [t for t in scored if t.unit.variant == 0]
    by_scenario: dict[str, list[Trial]] = defaultdict(list)
    for trial in counted:
        by_scenario[trial.unit.scenario].append(trial)
    scenarios = tuple(_scenario(s, by_scenario[s.id]) for s in suite.scenarios if s.id in by_scenario)
    rates = [s.rate for s in scenarios if s.rate is not None]
    clusters = [s.cluster for s in scenarios if s.rate is not None]
    turns = [turn for t in main for turn in t.score.turns]
    bad_turns = sum(1 for turn in turns if any(e.severity != "minor" for e in turn.errors()))
    bad_trials = sum(1 for t in main if any(e.severity != "minor" for e in t.score.errors()))
    critical = [t for t in main if t.score.critical]
    checks = [c for t in main for c in t.score.checks()]
    ratios = [c for c in checks if c.type == "replay" and c.score is not None]
    said = [c for c in ratios if c.note != "a person really took over here"]
    tokens_in = sum(r.tokens_in or 0 for t in counted for _, r in t.transcript.played)
    tokens_out = sum(r.tokens_out or 0 for t in counted for _, r in t.transcript.played)
    alone = _latency_alone(timed)
    agreeing = [s.variants_agree for s in scenarios if s.variants_agree is not None]
    return ArmSummary(
        target=target,
        scenarios=scenarios,
        trials=len(main),
        pass_rate=sum(rates) / len(rates) if rates else 0.0,
        pass_rate_interval=rate_interval(rates, clusters),
        pass_hat_k=_reliability(scenarios),
        mean_score=_mean([t.score.score_mean for t in main if t.score.score_mean is not None]),
        turns=len(turns),
        turn_error_rate=bad_turns / len(turns) if turns else 0.0,
        turn_error_interval=wilson(bad_turns, len(turns)),
        conversation_error_rate=bad_trials / len(main) if main else 0.0,
        conversation_error_interval=wilson(bad_trials, len(main)),
        critical_scenarios=tuple(s.id for s in scenarios if s.critical),
        critical_rate=len(critical) / len(main) if main else 0.0,
        critical_bound=wilson(len(critical), len(main)).high if critical else upper_bound_of_zero(len(main)),
        glitch_rate=sum(1 for turn in turns if turn.glitches) / len(turns) if turns else 0.0,
        errors=_errors(main),
        judged_checks=len(checks),
        unscored=sum(1 for c in checks if c.verdict == "unscored"),
        unscored_trials=sum(1 for t in counted if t.score.passed is None and t.score.infra is None),
        infra=sum(1 for t in counted if t.score.infra is not None),
        played=len(counted),
        handovers=_handovers(main),
        latency=alone or _latency(counted),
        latency_under_load=_latency(counted) if alone else None,
        cut_histories=sum(1 for t in counted for _, r in t.transcript.played if r.cut_messages),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        price=price_of(priced_as, tokens_in, tokens_out, len(counted)),
        robustness=_mean(agreeing) if agreeing else None,
        mean_ratio=100 * _mean([c.score or 0.0 for c in said]) if said else None,
        exact_rate=sum(1 for c in said if c.note == "exact") / len(said) if said else None,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _scenario(scenario: Scenario, trials: Sequence[Trial]) -> ScenarioSummary:
    main = [t for t in trials if t.unit.variant == 0 and t.score.passed is not None]
    passed = sum(1 for t in main if t.score.passed)
    rate = passed / len(main) if main else None
    others = [t.score.passed for t in trials if t.unit.variant > 0 and t.score.passed is not None]
    times = [r.total_ms for t in trials for _, r in t.transcript.played if r.failure is None]
    scores = [t.score.score_mean for t in main if t.score.score_mean is not None]
    lows = [t.score.score_min for t in main if t.score.score_min is not None]
    failing = next((t for t in main if not t.score.passed), None)
    return ScenarioSummary(
        id=scenario.id,
        title=scenario.title,
        kind=scenario.kind,
        trials=len(main),
        passed=passed,
        rate=rate,
        interval=wilson(passed, len(main)),
        flaky=0 < passed < len(main),
        score_mean=_mean(scores) if scores else None,
        score_min=min(lows, default=None),
        variants_agree=None if rate is None or not others else _mean([float(o == (rate > 0.5)) for o in others]),
        p50_ms=percentile(times, 0.5),
        p95_ms=percentile(times, 0.95),
        critical=any(t.score.critical for t in main),
        first_error=_worst_error(failing) if failing else "",
        cluster=scenario.cluster,
    )


def _worst_error(trial: Trial) -> str:
    order = ("critical", "major", "minor")
    return min(trial.score.errors(), key=lambda e: order.index(e.severity)).error if any(trial.score.errors()) else ""


def _reliability(scenarios: Sequence[ScenarioSummary]) -> tuple[float, ...]:
    """pass^1 to pass^n, n the fewest trials of any scored scenario, averaged over scenarios."""
    known = [s for s in scenarios if s.trials]
    fewest = min((s.trials for s in known), default=0)
    return tuple(_mean([pass_hat_k(s.trials, s.passed, k) for s in known]) for k in range(1, fewest + 1))


def _errors(trials: Sequence[Trial]) -> dict[str, int]:
    """In how many turns each class occurs; the dialogue as a whole counts as a turn of its own."""
    counts: Counter[str] = Counter()
    for trial in trials:
        counts.update(name for name, _ in {(e.error, e.turn) for e in trial.score.errors()})
    return dict(counts.most_common())


def _handovers(trials: Sequence[Trial]) -> Handovers:
    must = [t for t in trials if t.score.handover == "must"]
    must_not = [t for t in trials if t.score.handover == "must_not"]
    return Handovers(
        expected=len(must),
        missed=sum(1 for t in must if not t.score.handed_over),
        unexpected=len(must_not),
        needless=sum(1 for t in must_not if t.score.handed_over),
    )


def _latency(trials: Sequence[Trial]) -> Latency:
    replies = [r for t in trials for _, r in t.transcript.played if r.failure is None]
    firsts = [r.first_token_ms for r in replies if r.first_token_ms is not None]
    return _times(firsts, [r.total_ms for r in replies], max((r.concurrency for r in replies), default=0))


def _latency_alone(timed: Sequence[Timed]) -> Latency | None:
    totals = [t.total_ms for t in timed if t.total_ms is not None]
    return _times([t.first_token_ms for t in timed if t.first_token_ms is not None], totals, 1) if totals else None


def _times(firsts: Sequence[float], totals: Sequence[float], concurrency: int) -> Latency:
    return Latency(
        first_token_p50=percentile(firsts, 0.5),
        first_token_p95=percentile(firsts, 0.95),
        mean=_mean(totals),
        p50=percentile(totals, 0.5),
        p95=percentile(totals, 0.95),
        p99=percentile(totals, 0.99),
        concurrency=concurrency,
        replies=len(totals),
    )
