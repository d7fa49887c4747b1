"""Messages of the contract as the page shows them. What a model or a person wrote is escaped here and nowhere else."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bridge.testers.texts import known, text
from chatmill.eval.v1 import (
    BattleSide,
    BattleState,
    GetTestGuideResponse,
    HumanLabel,
    TestSession,
    TestTask,
    TestTaskKind,
    TestTurn,
    Thumb,
)

LEFT, RIGHT, ONE = BattleSide.BATTLE_SIDE_LEFT, BattleSide.BATTLE_SIDE_RIGHT, BattleSide.BATTLE_SIDE_UNSPECIFIED
KIND_NAMES = {
    TestTaskKind.TEST_TASK_KIND_ORDINARY: "ordinary",
    TestTaskKind.TEST_TASK_KIND_BREAK: "break",
    TestTaskKind.TEST_TASK_KIND_HANDOVER: "handover",
}
FEEDBACK = {Thumb.THUMB_UP: "Like", Thumb.THUMB_DOWN: "Dislike"}
HANDOVER_TOOL = "transfer_to_human"


def plain(value: str) -> str:
    """A text that HTML shows as it is."""
    return html.escape(value, quote=True)


def in_force(session: TestSession, side: BattleSide.ValueType = ONE) -> list[TestTurn]:
    """The turns of a side that are part of the conversation."""
    return [turn for turn in session.turns if turn.side == side and not turn.superseded]


def find_turn(session: TestSession, name: str) -> tuple[TestTurn, int, int] | None:
    """A turn that is part of the conversation, its place on its side from 1, and how many that side has."""
    for side in (ONE, LEFT, RIGHT):
        turns = in_force(session, side)
        for place, turn in enumerate(turns, 1):
            if turn.name == name:
                return turn, place, len(turns)
    return None


def bubbles(turns: Iterable[TestTurn], language: str) -> list[dict[str, Any]]:
    """The turns as the chat component takes them: always a question and its reply, so that places can be counted."""
    found: list[dict[str, Any]] = []
    for turn in turns:
        found += pair(turn.user, reply_text(turn, language))
    return found


def pair(question: str, reply: str) -> list[dict[str, Any]]:
    """A question and its reply as two bubbles; the chat component takes HTML even with Markdown off, so both are
    escaped."""
    return [{"role": "user", "content": plain(question)}, {"role": "assistant", "content": plain(reply)}]


def reply_text(turn: TestTurn, language: str) -> str:
    """A reply with what else happened: calls, a handover, an error."""
    lines = [turn.reply.content] if turn.reply.content else []
    lines += [
        "⚙ " + text(language, "chat.tool", name=call.name, arguments=call.arguments_json)
        for call in turn.reply.tool_calls
        if call.name != HANDOVER_TOOL
    ]
    if turn.HasField("handoff_reason"):
        reason = turn.handoff_reason or text(language, "chat.no_reason")
        lines.append("⇢ " + text(language, "chat.handover", reason=reason))
    if turn.status == "CANCELLED":
        lines.append("⏹ " + text(language, "chat.cut"))
    elif turn.status != "OK":
        lines.append("⚠ " + failure(turn.status, language))
    return "\n".join(lines) or "…"


def failure(status: str, language: str) -> str:
    """What went wrong with a reply, and what the tester can do."""
    key = f"chat.failed.{status}"
    return text(language, key) if known(key) else text(language, "chat.failed", status=status)


def feedback(session: TestSession) -> list[str | None]:
    """The thumbs of the tester, one for each reply of a conversation with one model."""
    return [FEEDBACK.get(own_label(session, turn.name).thumb) for turn in in_force(session)]


def own_label(session: TestSession, subject: str) -> HumanLabel:
    """The tester's label on a subject; an empty one where there is none."""
    found = [x for x in session.labels if x.subject == subject and x.author == session.tester]
    return found[-1] if found else HumanLabel(subject=subject, author=session.tester)


def name_of(model: str) -> str:
    """`models/shop/versions/2` as `shop v2`."""
    found = re.fullmatch(r"models/([^/]+)(?:/versions/(\d+)|/aliases/([^/]+))?", model)
    if found is None:
        return model
    tail = f" v{found[2]}" if found[2] else f" ({found[3]})" if found[3] else ""
    return found[1] + tail


def model_line(session: TestSession, language: str) -> str:
    """Which model it is, as far as the tester may know."""
    if session.battle.left_model:
        return f"{name_of(session.battle.left_model)} | {name_of(session.battle.right_model)}"
    if session.HasField("battle") or (session.model_hidden and not session.HasField("end_time")):
        return text(language, "card.hidden")
    return name_of(session.model)


def vote_result(session: TestSession, language: str) -> str:
    """What a vote revealed; empty before it."""
    battle = session.battle
    if not battle.left_model:
        return ""
    left, right = name_of(battle.left_model), name_of(battle.right_model)
    lines = [plain(text(language, "vote.done", left=left, right=right))]
    if battle.state == BattleState.BATTLE_STATE_VOID:
        lines.append(plain(text(language, "vote.void", reason=battle.void_reason)))
    return f'<div class="cm-reveal">{"<br>".join(lines)}</div>'


def task_card(
    guide: GetTestGuideResponse, task: TestTask | None, session: TestSession | None, language: str, *, rules: bool
) -> str:
    """The card with the task, whom one talks to, and what is true there.

    Args:
        rules: with the agent's policies, to check replies against.
    """
    if task is None:
        return ""
    kind = KIND_NAMES.get(task.kind, "ordinary")
    badge = f'<span class="cm-badge cm-{kind}">{plain(text(language, f"start.kind.{kind}"))}</span>'
    parts = [f'<div class="cm-card-head">{badge}<h3>{plain(task.title)}</h3></div>']
    if task.persona:
        parts.append(f'<p class="cm-persona">{plain(task.persona)}</p>')
    parts.append(f"<p>{plain(task.instructions)}</p>")
    if task.facts:
        facts = "".join(f"<li>{plain(fact)}</li>" for fact in task.facts)
        parts.append(f'<p class="cm-small">{plain(text(language, "card.facts"))}</p><ul>{facts}</ul>')
    if session is not None:
        parts.append(_about(guide, session, language))
    if rules and guide.agent_policies:
        lines = "".join(f"<li>{plain(policy)}</li>" for policy in guide.agent_policies)
        heading = plain(text(language, "card.rules"))
        parts.append(f"<details><summary>{heading}</summary><ul>{lines}</ul></details>")
    return f'<div class="cm-card">{"".join(parts)}</div>'


def _about(guide: GetTestGuideResponse, session: TestSession, language: str) -> str:
    lines = [plain(_agent_name(guide, language))] if guide.agent_name else []
    model = f"{text(language, 'card.model')}: {model_line(session, language)}"
    lines.append(f'<span class="cm-model">{plain(model)}</span>')
    return f'<p class="cm-small">{" · ".join(lines)}</p>'


def agent(guide: GetTestGuideResponse, language: str) -> str:
    """Whom one talks to, and what it is for if that is said in the page's language; empty without an agent card."""
    if not guide.agent_name:
        return ""
    purpose = guide.agent_purpose if (language == "zh") != guide.agent_purpose.isascii() else ""
    return f"{_agent_name(guide, language)} {purpose}".strip()


def _agent_name(guide: GetTestGuideResponse, language: str) -> str:
    return text(language, "card.agent", name=guide.agent_name, company=guide.agent_company)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain texts."""
    titles = "".join(f"<th>{plain(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, head, row))}</tr>" for row in rows)
    return f'<div class="cm-table"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(title: str, value: str) -> str:
    """A cell that carries its column's title, which a phone shows beside it."""
    return f'<td data-title="{plain(title)}">{plain(value)}</td>'


def heading(value: str, hint: str = "") -> str:
    """A heading with an optional line under it."""
    below = f'<p class="cm-small">{plain(hint)}</p>' if hint else ""
    return f'<div class="cm-heading"><h3>{plain(value)}</h3>{below}</div>'
