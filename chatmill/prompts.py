"""How the operator's instructions and what is known about a customer become one system message.

Training, evaluation and service must agree on it to the letter, so it stands here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable


def system_message(system_prompt: str, facts: Iterable[str] = ()) -> str:
    """The system message: the prompt, and on a line of its own the facts, joined by spaces.

    Args:
        system_prompt: the operator's instructions; may be empty.
        facts: short sentences about the customer, in order.

    Returns:
        `system_prompt` alone without facts, and an empty text if there is neither.
    """
    return "\n".join(part for part in (system_prompt.strip(), " ".join(f.strip() for f in facts if f.strip())) if part)
