"""Each row is sampled by its own settings and seed, and by nothing beside it."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from inference_svc.engines.rows import sampling as under_test
from inference_svc.engines.rows.sampling import RowSampling, choose, uniform
from inference_svc.generation import Sampling

from . import tiny

SIZE = 700
"""More than `TOP`, so that both ways of truncating are taken."""


def row(seed: int = 0, output: tuple[int, ...] = (), prompt: tuple[int, ...] = (), **settings_: object) -> RowSampling:
    return RowSampling(Sampling(**settings_), seed, (2,), prompt, list(output))


def logits(seed: int, *, flat: float = 2.0, size: int = SIZE) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * flat


def reference(scores: torch.Tensor, s: Sampling) -> torch.Tensor:
    """Probabilities [vocabulary] as Transformers' warpers leave them."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(s.temperature)])
    if s.top_k:
        warpers.append(TopKLogitsWarper(s.top_k))
    if s.top_p < 1:
        warpers.append(TopPLogitsWarper(s.top_p))
    if s.min_p > 0:
        warpers.append(MinPLogitsWarper(s.min_p))
    return torch.softmax(warpers(None, scores[None])[0], -1)


SETTINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 5, 255, 256, 300]),
    top_p=st.sampled_from([1.0, 0.05, 0.5, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.01, 0.3]),
)


@settings(max_examples=150, deadline=None)
@given(SETTINGS, st.integers(0, 10**6), st.sampled_from([0.2, 2.0, 6.0]))
def test_only_what_transformers_keeps_is_drawn(given_settings: Sampling, seed: int, flat: float) -> None:
    """Never a token that the warpers cut, and every one with its share: the draw inverts the distribution."""
    scores = logits(seed, flat=flat)
    expected = reference(scores, given_settings)
    rows = [RowSampling(given_settings, seed + n, (), ()) for n in range(64)]
    tokens = [choice.token for choice in choose(scores.repeat(64, 1), rows)]
    assert all(expected[token] > 0 for token in tokens)


@pytest.mark.parametrize(
    "settings_",
    [{}, {"top_k": 6}, {"top_p": 0.8}, {"min_p": 0.1}, {"temperature": 0.5, "top_k": 10, "top_p": 0.95}],
)
def test_shares_are_those_of_the_distribution(settings_: dict[str, object]) -> None:
    scores = logits(3, flat=1.5, size=20)
    given_settings = Sampling(**settings_)
    expected = reference(scores, given_settings)
    count = 6000
    rows = [RowSampling(given_settings, seed, (), ()) for seed in range(count)]
    drawn = torch.bincount(
        torch.tensor([choice.token for choice in choose(scores.repeat(count, 1), rows)]), minlength=20
    )
    kept = expected > 0
    assert drawn[~kept].sum() == 0
    if kept.sum() > 1:
        shares = expected[kept].double()
        result = chisquare(drawn[kept].numpy(), (shares / shares.sum() * count).numpy())
        assert result.pvalue > 1e-4


def test_uniform_numbers_are_uniform_over_seeds_and_over_counts() -> None:
    for numbers in ([uniform(seed, 0) for seed in range(5000)], [uniform(7, count) for count in range(5000)]):
        bins = torch.histc(torch.tensor(numbers), 20, 0, 1)
        assert chisquare(bins.numpy()).pvalue > 1e-4
        assert min(numbers) >= 0
        assert max(numbers) < 1


@settings(max_examples=60, deadline=None)
@given(st.lists(SETTINGS, min_size=1, max_size=6), st.integers(0, 1000))
def test_neighbours_change_nothing(neighbours: list[Sampling], seed: int) -> None:
    scores = torch.stack([logits(seed + n) for n in range(len(neighbours) + 1)])
    own = Sampling(temperature=0.9, top_p=0.97)
    alone = choose(scores[:1].clone(), [RowSampling(own, seed, (), ())])[0]
    rows = [RowSampling(own, seed, (), ()), *(RowSampling(s, 5, (), ()) for s in neighbours)]
    assert choose(scores.clone(), rows)[0] == alone


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_a_seeded_request_gives_the_same_text_whatever_runs_beside_it(family: str) -> None:
    base = tiny.loaded(family)
    requests = {
        str(n): (
            [20 + n, 30, 40 + n] * (1 + 5 * n),
            Sampling(
                temperature=[0.7, 1.0, 1.3][n % 3],
                top_p=[1.0, 0.9][n % 2],
                top_k=[0, 20, 300][n % 3],
                repetition_penalty=[1.0, 1.2][n % 2],
                frequency_penalty=[0.0, 0.5][n % 2],
                seed=100 + n,
                max_output_tokens=25,
                ignore_eos=True,
            ),
        )
        for n in range(6)
    }
    alone = {}
    for name, (prompt, sampling) in requests.items():
        bench = tiny.Bench(base)
        bench.add(name, prompt, sampling)
        bench.run()
        alone[name] = bench.ids(name)
    together = tiny.Bench(base)
    chance = random.Random(1)
    for number, (name, (prompt, sampling)) in enumerate(requests.items()):
        together.add(name, prompt, sampling)
        together.add(f"noise {number}", [chance.randrange(10, 300) for _ in range(50)], Sampling(seed=number))
        for _ in range(chance.randrange(4)):
            together.scheduler.step()
    together.run()
    assert {name: together.ids(name) for name in requests} == alone
    assert len(set(map(tuple, alone.values()))) == len(alone)


def test_another_seed_gives_another_text() -> None:
    bench = tiny.Bench(tiny.loaded())
    for seed in range(4):
        bench.add(str(seed), [30, 40], Sampling(seed=seed, max_output_tokens=20, ignore_eos=True))
    bench.run()
    assert len({tuple(bench.ids(str(seed))) for seed in range(4)}) == 4


def test_repetition_penalty_is_that_of_transformers() -> None:
    scores = logits(5)
    prompt, output = (3, 9, 9, 40), (7, 9, 300)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([[*prompt, *output]]), scores[None].clone())[0]
    got = scores.clone()
    under_test._penalise(got, row(prompt=prompt, output=output, repetition_penalty=1.7))
    assert torch.allclose(got, expected)


def test_presence_and_frequency_count_the_output_only() -> None:
    scores = logits(5)
    got = scores.clone()
    under_test._penalise(got, row(prompt=(1, 1, 1), output=(7, 9, 7), presence_penalty=0.5, frequency_penalty=0.25))
    change = scores - got
    assert change[7] == pytest.approx(1.0)
    assert change[9] == pytest.approx(0.75)
    assert torch.count_nonzero(change.abs() > 1e-6) == 2


def test_the_end_is_not_drawn_before_the_minimum() -> None:
    scores = torch.zeros(SIZE)
    scores[2] = 50.0
    early, late = row(temperature=0, min_output_tokens=1), row(temperature=0, min_output_tokens=1, output=(5,))
    first, second = choose(torch.stack([scores, scores]), [early, late])
    assert first.token != 2
    assert second.token == 2


def test_logprobs_are_the_models_own() -> None:
    scores = logits(8)
    expected = torch.log_softmax(scores, -1)
    choice = choose(scores[None].clone(), [row(logprobs=4, temperature=0.3, top_k=3, repetition_penalty=1.5, seed=3)])[
        0
    ]
    assert choice.logprob == pytest.approx(float(expected[choice.token]), abs=1e-5)
    values, ids = expected.topk(4)
    assert [token for token, _ in choice.top] == ids.tolist()
    assert [value for _, value in choice.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_bad_row_is_told_apart_and_the_others_go_on() -> None:
    scores = torch.stack([logits(1), torch.full((SIZE,), float("nan")), logits(2)])
    expected = [int(logits(1).argmax()), -1, int(logits(2).argmax())]
    assert [c.token for c in choose(scores, [row(temperature=0) for _ in range(3)])] == expected


def test_nothing_allowed_is_no_token() -> None:
    stuck = row(temperature=0)
    stuck.allowed = torch.zeros(SIZE, dtype=torch.bool)
    assert choose(logits(1)[None].clone(), [stuck])[0].token == -1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 255, 256, 257, 1000])
def test_the_best_token_is_the_same_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, width: int
) -> None:
    torch.manual_seed(11)
    scores = (torch.randn(40, width) * 3).to(dtype)
    # Ties: bfloat16 has many, and the first counts.
    scores[30] = 0.5
    scores[31] = scores[31].abs().neg()
    for number, bad in enumerate((float("nan"), float("inf"), float("-inf"))):
        scores[32 + number, width // 2] = bad
        scores[36 + number] = bad
    results = []
    for without in (False, True):
        if without:
            monkeypatch.setattr(under_test, "_compiled_best", lambda dtype: None)
        tokens, fine = under_test._most_likely(scores)
        results.append([token if good else -1 for token, good in zip(tokens, fine, strict=True)])
    assert results[0] == results[1]
    assert results[0][:30] == scores[:30].float().argmax(-1).tolist()
    assert results[0][32:34] == results[0][36:39][:2] == [-1, -1]
