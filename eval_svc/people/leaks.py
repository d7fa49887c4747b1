"""Whether a reply gives away which model it is, which makes a vote worthless.

Only words that point to one of the two models count: a shop's model that is called `shop` may say "shop".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FAMILIES = (
    "chatgpt", "gpt-3", "gpt-4", "gpt-5", "openai", "claude", "anthropic", "gemini", "deepmind", "llama", "qwen",
    "通义千问", "deepseek", "mistral", "mixtral", "chatglm", "文心一言", "ernie bot", "smollm", "phi-3", "phi-4",
)  # fmt: skip
"""Names of models and their makers that no customer-service agent says of itself."""


def identity(model: str, replies: Iterable[str]) -> str:
    """The words in a side's replies that tell its model, or an empty text.

    Args:
        model: `models/{id}/versions/{n}`.
        replies: what that side said.
    """
    name = model.removeprefix("models/").partition("/")[0].lower()
    telling = [model.lower(), *FAMILIES]
    # an id without digit or hyphen may well be an ordinary word
    if re.search(r"[\d-]", name):
        telling.append(name)
    for reply in replies:
        text = reply.lower()
        for word in telling:
            if re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text):
                return word
    return ""
