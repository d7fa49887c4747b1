"""Scenarios out of real transcripts: the customer's words as they were said, and checks out of what the agent answered.

Only held-back conversations come in here (`HeldBack` knows no others), so that no scenario asks for what a model was
trained on. What comes out is a draft: a person looks at it before it decides anything, and its head says so.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from chatmill.errors import ChatmillError, FailedPrecondition, InvalidArgument
from eval_svc import seeds
from eval_svc.replay import MAX_MESSAGE_CHARS, Conversation, HeldBack, slug, tolerated
from eval_svc.scenario_file import scenario_from_mapping
from eval_svc.text import plain, sentences

MAX_TURNS = 8
"""Customer turns of a draft where the request does not say; a longer conversation is cut behind them."""

LIKENESS = 0.5
"""Cosine to the real reply from which a soft check passes; a hint that a person should adjust."""

_UNITS = {
    "day": ("day", "days"),
    "days": ("day", "days"),
    "week": ("week", "weeks"),
    "weeks": ("week", "weeks"),
    "month": ("month", "months"),
    "months": ("month", "months"),
    "hour": ("hour", "hours"),
    "hours": ("hour", "hours"),
    "year": ("year", "years"),
    "years": ("year", "years"),
    "天": ("天", "日"),
    "小时": ("小时",),
    "个月": ("个月",),
    "年": ("年",),
    "元": ("元",),
    "%": ("%",),
}
_QUANTITY = re.compile(
    rf"(?<![\w.])(\d+(?:\.\d+)?) ?(?:working |business )?({'|'.join(sorted(_UNITS, key=len)[::-1])})(?![a-z])"
)
_CODE = re.compile(r"(?<![\w-])(?=[a-z0-9-]*\d)[a-z]{1,6}-?\d[a-z0-9-]{1,15}(?![\w-])|(?<!\d)\d{5,12}(?!\d)")


@dataclass(frozen=True, slots=True)
class Draft:
    """What became of one conversation.

    Attributes:
        item: id of the conversation in its dataset.
        scenario: id of the scenario; empty if none was made.
        text: the file.
        left_out: why none was made; empty if one was.
    """

    item: str
    scenario: str = ""
    text: str = ""
    left_out: str = ""


async def draft_scenarios(
    source: HeldBack, dataset: str, *, most: int = 0, seed: int = 0, max_turns: int = MAX_TURNS
) -> AsyncIterator[Draft]:
    """A draft of each conversation that is drawn, sorted by id.

    Args:
        most: at most so many conversations, drawn by `seed`; 0: all.

    Raises:
        InvalidArgument: a negative number, or no turn at all.
        NotFound: no such dataset.
        FailedPrecondition: nothing is held back.
    """
    if most < 0 or max_turns < 1:
        raise InvalidArgument(
            f"max_conversations must be 0 or more and max_turns 1 or more, not {most} and {max_turns}"
        )
    conversations = [c async for c in source.test_conversations(dataset)]
    if not conversations:
        raise FailedPrecondition(
            f"{dataset} has no held-back conversations; create it with a test_fraction above 0", reason="NO_TEST_SPLIT"
        )
    drawn = sorted(conversations, key=lambda c: seeds.derive("draft", seed, c.id))[: most or None]
    taken: set[str] = set()
    for conversation in sorted(drawn, key=lambda c: c.id):
        made = draft(conversation, dataset, max_turns)
        if made.scenario in taken:  # ids that differ only in signs that an id can't hold
            made = Draft(made.item, left_out=f"its id {made.scenario} is taken by another conversation")
        taken |= {made.scenario} - {""}
        yield made


def draft(conversation: Conversation, dataset: str, max_turns: int = MAX_TURNS) -> Draft:
    """The draft of one conversation."""
    rounds = list(_rounds(conversation))
    handed = conversation.handover_index is not None
    if not rounds:
        return Draft(conversation.id, left_out="no agent turn answers a customer")
    if handed and len(rounds) > max_turns:
        return Draft(conversation.id, left_out=f"the handover comes after more than {max_turns} customer turns")
    if any(len(said) > MAX_MESSAGE_CHARS for pair in rounds for said in pair):
        return Draft(conversation.id, left_out=f"a message is longer than {MAX_MESSAGE_CHARS} characters")
    data = _scenario(conversation, dataset, rounds[:max_turns])
    try:
        scenario_from_mapping(data, conversation.id)  # what is handed out must be readable
    except ChatmillError as error:
        return Draft(conversation.id, left_out=f"it makes no valid scenario: {error.message}"[:500])
    text = yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120)
    return Draft(conversation.id, data["id"], _head(conversation, dataset, len(rounds), max_turns) + text)


def _rounds(conversation: Conversation) -> Iterator[tuple[str, str]]:
    """What the customer said and what the agent answered, turn by turn, up to the handover; empty where that was it."""
    last = conversation.handover_index if conversation.handover_index is not None else len(conversation.messages)
    user: list[str] = []
    agent: list[str] = []
    for index, message in enumerate(conversation.messages):
        if message.role == "user" and index <= last:
            if agent:
                yield "\n".join(user), "\n".join(agent)
                user, agent = [], []
            user += [message.content] if message.content.strip() else []
        elif message.role == "assistant" and user and index <= last:
            agent.append("" if index == last else message.content)
    if user and agent:
        yield "\n".join(user), "\n".join(agent)


def _scenario(conversation: Conversation, dataset: str, rounds: Sequence[tuple[str, str]]) -> dict[str, Any]:
    handed = conversation.handover_index is not None
    known = plain(" ".join(conversation.facts))
    turns, allowed = [], {"false_action"}
    for number, (user, real) in enumerate(rounds):
        known += f" {plain(user)}"
        expect = list(_checks(real, known)) if real.strip() else []
        turns.append({"user": user, **({"expect": expect} if expect else {})})
        if real.strip():
            allowed |= set(tolerated(real, user, [answer for _, answer in rounds[:number]], conversation.language))
    data: dict[str, Any] = {
        "schema": 1,
        "id": slug(conversation.id),
        "title": next(iter(sentences(rounds[0][0])), rounds[0][0])[:80],
        "kind": "handoff" if handed else "memory" if conversation.facts else "happy",
        "severity": "major",
        "tags": ["from-dataset"],
        "source": {
            "type": "transcript",
            "dataset": dataset.removeprefix("datasets/"),
            "conversation": conversation.id,
            "split": "test",
        },
    }
    if conversation.language:
        data["persona"] = {"language": conversation.language.split("-")[0]}
    if conversation.facts:
        data["memory"] = {"facts": list(conversation.facts)}
    outcome = "handoff" if handed else ["answered", "clarified", "ticket", "refused"]
    return {**data, "turns": turns, "final": {"outcome": outcome}, "allow": sorted(allowed)}


def _checks(real: str, known: str) -> Iterator[dict[str, Any]]:
    """What the real reply says that can be checked.

    A period or amount must not be told otherwise; one that is not told is no mistake. A number that the customer or
    the memory gave is known and may be repeated; likeness to the real reply is a hint. Both are soft.
    """
    text = plain(real)
    amounts: dict[tuple[str, ...], list[float]] = {}
    for number, unit in _QUANTITY.findall(text):
        value = float(number)
        amounts.setdefault(_UNITS[unit], []).append(int(value) if value.is_integer() else value)
    for units, values in amounts.items():
        yield {"type": "number", "value": sorted(set(values)), "unit": list(units), "only": True}
    codes = [code for code in dict.fromkeys(_CODE.findall(text)) if code in known]
    if codes:
        yield {"type": "contains_any", "value": codes, "error": "context_lost", "gate": "soft"}
    yield {"type": "semantic", "value": real[:400], "threshold": LIKENESS}


def _head(conversation: Conversation, dataset: str, rounds: int, max_turns: int) -> str:
    lines = [
        f"From a held-back conversation of {dataset}: {conversation.id}.",
        "The customer's words are as they were said; the checks are guesses from what the agent answered then. Look at",
        "them before they decide anything: a later turn may answer something that this agent does not ask.",
    ]
    if rounds > max_turns:
        lines.append(f"Cut after {max_turns} of {rounds} customer turns.")
    if conversation.handover_reason:
        lines.append(f"A person had to take over: {' '.join(conversation.handover_reason.split())}")
    return "".join(f"# {line}\n" for line in lines)
