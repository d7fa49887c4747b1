"""The scenarios of the made-up client: enough of them, of every kind, and no answer in the product."""

from collections import Counter
from pathlib import Path

import pytest

from chatmill.agent import load
from eval_svc.scoring import handover_expected
from eval_svc.suite import Suite, read_suite

SAMPLES = Path(__file__).parents[3] / "samples"


@pytest.fixture(scope="module", params=["suite", "suite-dev"])
def suite(request: pytest.FixtureRequest) -> Suite:
    return read_suite(SAMPLES / request.param)


def test_at_least_forty_scenarios_of_every_kind(suite: Suite) -> None:
    kinds = Counter(s.kind for s in suite.scenarios)
    assert len(suite.scenarios) >= 40
    assert set(kinds) >= {"new_customer", "memory", "handoff", "undesired", "attack", "edge", "happy"}
    assert sum("zh" in s.tags for s in suite.scenarios) >= 8


def test_every_scenario_is_judged(suite: Suite) -> None:
    for scenario in suite.scenarios:
        # the table of figures, which the suite adds to every turn, judges only what is said in figures
        own = [c for c in scenario.checks() if c.gate == "hard" and not getattr(c.scorer, "may_repeat", False)]
        assert scenario.outcomes or own, scenario.id


def test_handovers_come_in_pairs_of_must_and_must_not(suite: Suite) -> None:
    expected = Counter(handover_expected(s) for s in suite.scenarios)
    assert expected["must"] >= 8
    assert expected["must_not"] >= 8


def test_policies_are_those_of_the_agent_card(suite: Suite) -> None:
    known = {policy.id for policy in load(SAMPLES / "agent.yaml").policies}
    assert {policy for s in suite.scenarios for policy in s.policy} <= known


def test_nothing_outside_the_suite_knows_its_scenarios(suite: Suite) -> None:
    lines = [turn.user for s in suite.scenarios for turn in s.turns if len(turn.user) > 20]
    root = SAMPLES.parent
    for folder in ("samples", "chatmill", "eval_svc", "factory_svc", "inference_svc", "dataset_svc"):
        for file in (root / folder).rglob("*"):
            if file.suffix in (".py", ".yaml") and not {SAMPLES / "suite", SAMPLES / "suite-dev"} & {*file.parents}:
                text = file.read_text(encoding="utf-8")
                assert not [line for line in lines if line in text], file
