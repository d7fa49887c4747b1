"""Detectors of what the customer sees when the connection or the reply fails: from the transport, not from the text."""

from __future__ import annotations

from eval_svc.glitches.base import Hit, Scene, detects

CUT = frozenset(("length", "max_tokens", "context_full"))
"""Finish reasons that say the reply was cut off."""


def _failed(scene: Scene, kind: str) -> Hit | None:
    failure = scene.reply.failure
    return Hit(note=f"{failure.status}: {failure.detail}") if failure is not None and failure.kind == kind else None


@detects("timeout")
def timeout(scene: Scene) -> Hit | None:
    """The endpoint did not finish in time."""
    return _failed(scene, "timeout")


@detects("stream_broken")
def stream_broken(scene: Scene) -> Hit | None:
    """The endpoint ended the reply with an error."""
    return _failed(scene, "stream_broken")


@detects("oversized")
def oversized(scene: Scene) -> Hit | None:
    """The evaluator had to cut the reply, because it did not end."""
    return _failed(scene, "oversized")


@detects("empty")
def empty(scene: Scene) -> Hit | None:
    """Nothing was said and nothing done."""
    reply = scene.reply
    if reply.failure is not None or reply.text.strip() or reply.tool_calls or reply.handed_over:
        return None
    return Hit(note=f"finish reason {reply.finish_reason or 'unknown'}")


@detects("truncated")
def truncated(scene: Scene) -> Hit | None:
    """The token limit cut the reply."""
    if scene.reply.finish_reason in CUT:
        return Hit(scene.reply.text[-60:], f"finish reason {scene.reply.finish_reason}")
    return None


@detects("slow")
def slow(scene: Scene) -> Hit | None:
    """A complete reply came later than the budget."""
    reply, budgets = scene.reply, scene.budgets
    if reply.failure is not None:
        return None
    if reply.first_token_ms is not None and reply.first_token_ms > budgets.first_token_ms:
        return Hit(note=f"first token after {reply.first_token_ms:.0f} ms, budget {budgets.first_token_ms:.0f}")
    if reply.total_ms > budgets.total_ms:
        return Hit(note=f"complete after {reply.total_ms:.0f} ms, budget {budgets.total_ms:.0f}")
    return None
