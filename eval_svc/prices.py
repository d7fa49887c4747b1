"""What a conversation costs by the token, where a price is known.

A model that the team serves itself has no token price: its price is the machine's, which this module does not know.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Price:
    """Price of a run.

    Attributes:
        per_conversation_usd: mean over dialogues; None if no price is known.
        note: where the price comes from, or why there is none.
    """

    per_conversation_usd: float | None
    note: str


def price_of(model: str, tokens_in: int, tokens_out: int, conversations: int) -> Price:
    """The price of so many tokens of a hosted model; `model` is empty for one that is served by ourselves."""
    if not model:
        return Price(0.0, "served on your own machine: no token price; the machine's own cost is not in it")
    if conversations == 0 or tokens_in + tokens_out == 0:
        return Price(None, "the endpoint counted no tokens")
    try:
        prices: Any = importlib.import_module("genai_prices")
    except ImportError:
        return Price(None, "no price table is installed; pip install genai-prices")
    try:
        usage = prices.Usage(input_tokens=tokens_in, output_tokens=tokens_out)
        found = prices.calc_price(usage, model_ref=model)
    except LookupError:
        return Price(None, f"no price is known for {model}")
    return Price(float(found.total_price) / conversations, f"genai-prices for {model}")
