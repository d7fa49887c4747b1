"""The latency check, on the times that the evaluator measured."""

from __future__ import annotations

from dataclasses import dataclass

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict


@SCORERS.register("latency")
@dataclass(frozen=True)
class Latency(Check):
    """Passes if the reply kept within the budget, in milliseconds from sending the request."""

    first_token_ms: float | None = None
    total_ms: float | None = None

    error = "slow"
    forbidden_error = "slow"

    def __post_init__(self) -> None:
        if self.first_token_ms is None and self.total_ms is None:
            raise ValueError("latency needs first_token_ms, total_ms or both")

    def score(self, view: View) -> Finding:
        """Not applicable to a reply that failed, which has an error of its own."""
        reply = view.reply
        if reply.failure is not None:
            return Finding("n/a", note="the reply failed")
        over = []
        if self.first_token_ms is not None and (reply.first_token_ms or reply.total_ms) > self.first_token_ms:
            over.append(
                f"first token after {reply.first_token_ms or reply.total_ms:.0f} ms, budget {self.first_token_ms:.0f}"
            )
        if self.total_ms is not None and reply.total_ms > self.total_ms:
            over.append(f"complete after {reply.total_ms:.0f} ms, budget {self.total_ms:.0f}")
        return Finding(verdict(not over), float(not over), note="; ".join(over))
