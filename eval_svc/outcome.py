"""How a dialogue ended: answered, clarified, ticket, handoff or refused.

Handover and ticket are seen in what the agent did; the rest is read from its last words, by patterns whose
precision and recall on labelled examples stand in every report.
"""

from __future__ import annotations

from collections.abc import Sequence

import regex

from eval_svc.scenario import Outcome
from eval_svc.transcript import Reply

_REFUSAL = regex.compile(
    r"\b(?:i|we)(?:'m| am|'re| are)? (?:(?:afraid|sorry,?(?: but)?) (?:that )?(?:i|we) )?"
    r"(?:can't|cannot|can not|couldn't|won't|will not|am not able to|are not able to|unable to|not able to|"
    r"not allowed to|must decline|have to decline|don't have permission)\b"
    r"|\b(?:that|this|it)(?:'s| is| would be)? not (?:possible|allowed|permitted|something (?:i|we) can)"
    r"|\b(?:that|this|it)(?:'s| is| would be)? against (?:our|the)\b"
    r"|\b(?:i|we) (?:do not|don't) (?:share|disclose|discuss|give out|offer|provide|have access to (?:that|other))\b"
    r"|\bnot eligible\b|\boutside (?:of )?(?:our|the) (?:\d+[- ]day|return|refund|policy)"
    r"|\bonly help with\b|\bcan only (?:help|assist|answer)\b|\bno longer (?:be )?(?:return|refund)"
    r"|(?:无法|不能|没办法|不可以|没法)(?:为您|帮您|给您|向您|替您|提供|透露|泄露|告知|告诉|处理|办理|退|答应|承诺|协助|满足|分享|修改|查询|再)"
    r"|不(?:便|方便|允许|支持)(?:透露|提供|退|告知)|恕(?:我)?(?:无法|不能|难)|很?抱歉.{0,12}(?:不能|无法|不可以|不行|没办法)"
    r"|超(?:过|出)了?.{0,10}(?:期限|时限|天|范围)|只能(?:帮|协助|回答|处理|为您)",
    regex.IGNORECASE,
)
_QUESTION = regex.compile(
    r"[?？]\s*$|\b(?:please|could you) (?:provide|share|send|tell|give|confirm|let me know)\b"
    r"|请(?:提供|告诉|告知|发|给|问)",
    regex.IGNORECASE,
)


def refusal(text: str) -> str | None:
    """The passage that refuses, or None; None too for a text that takes too long to search."""
    match = _search(_REFUSAL, text.replace("’", "'"))
    return match.group() if match else None


def _search(pattern: regex.Pattern[str], text: str) -> regex.Match[str] | None:
    try:
        return pattern.search(text, timeout=1)
    except TimeoutError:
        return None


def asks(text: str) -> bool:
    """True if the text ends on a question or asks for something."""
    return _search(_QUESTION, text.strip()) is not None


def outcome_of(replies: Sequence[Reply]) -> Outcome:
    """How the dialogue ended, from all replies in order; what was done outweighs what was said."""
    if any(reply.handed_over for reply in replies):
        return "handoff"
    if any("ticket" in call.name for reply in replies for call in reply.tool_calls):
        return "ticket"
    said = [reply.text for reply in replies if reply.text.strip()]
    if not said:
        return "answered"
    if refusal(said[-1]) is not None:
        return "refused"
    if asks(said[-1]):
        return "clarified"
    return "refused" if any(refusal(text) for text in said) else "answered"
