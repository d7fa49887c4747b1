"""Price per conversation: of hosted models that a table knows, and honest nothing otherwise."""

from __future__ import annotations

import pytest

from eval_svc.prices import price_of


def test_a_hosted_model_has_the_price_of_its_tokens() -> None:
    pytest.importorskip("genai_prices")
    found = price_of("gpt-4o", 1_000_000, 100_000, 10)
    assert found.per_conversation_usd is not None
    assert 0.01 < found.per_conversation_usd < 10
    assert "gpt-4o" in found.note
    twice = price_of("gpt-4o", 1_000_000, 100_000, 20)
    assert twice.per_conversation_usd == pytest.approx(found.per_conversation_usd / 2)


@pytest.mark.parametrize(
    ("model", "tokens", "price", "told"),
    [
        ("", 100, 0.0, "own machine"),
        ("a-model-that-nobody-sells", 100, None, "no price is known"),
        ("gpt-4o", 0, None, "counted no tokens"),
    ],
)
def test_what_has_no_price_says_why(model: str, tokens: int, price: float | None, told: str) -> None:
    pytest.importorskip("genai_prices")
    found = price_of(model, tokens, 0, 1)
    assert found.per_conversation_usd == price
    assert told in found.note
