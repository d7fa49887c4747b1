"""The agent card: one file that says what an agent is for, how it speaks and when a person must take over.

The system prompt, the judge, the testers' task cards and the reports all read this one file, so that they can't
disagree. This module knows no service and no model.
"""

from __future__ import annotations

import os
import string
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from chatmill.errors import FieldViolation, InvalidArgument
from chatmill.located_yaml import Document, locate, read, refuse
from chatmill.plugins import nearest, parse_parameters

REASON = "INVALID_AGENT_CARD"


@dataclass(frozen=True, slots=True)
class Policy:
    """Something that is true, or that is not allowed.

    Attributes:
        id: what scenarios refer to it by; unique in the card.
        text: the policy in words.
    """

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class HandoverRule:
    """When a person must take over.

    Attributes:
        id: unique in the card.
        reason: the argument of the tool call `transfer_to_human`.
        when: the situation in words.
    """

    id: str
    reason: str
    when: str


@dataclass(frozen=True, slots=True)
class AgentCard:
    """An agent, as its owner describes it.

    Attributes:
        schema: version of this table; 1.
        name: who the agent says it is.
        company: for whom it speaks.
        system_prompt: what the model is told first, with the placeholders of `placeholders` in braces.
        purpose: what the agent is for, in a sentence.
        tone: how it speaks.
        languages: languages that it speaks, ISO 639-1.
        policies: what is true and what is not allowed.
        handover: when a person must take over.
    """

    name: str
    company: str
    system_prompt: str
    schema: int = 1
    purpose: str = ""
    tone: str = ""
    languages: tuple[str, ...] = ()
    policies: tuple[Policy, ...] = ()
    handover: tuple[HandoverRule, ...] = ()

    def placeholders(self) -> dict[str, str]:
        """What may stand in braces in `system_prompt`, and what it becomes."""
        return {
            "name": self.name,
            "company": self.company,
            "purpose": self.purpose,
            "tone": self.tone,
            "policies": "\n".join(policy.text for policy in self.policies),
            "handover": "\n".join(rule.when for rule in self.handover),
        }

    def render(self) -> str:
        """The system prompt with its placeholders filled: the text that training, evaluation and service share."""
        return self.system_prompt.format_map(self.placeholders()).strip()


def load(path: Path) -> AgentCard:
    """The card at `path`.

    Raises:
        NotFound: there is no such file.
        InvalidArgument: reason `INVALID_AGENT_CARD`; one violation per wrong key, each with file and line.
    """
    document = read(path)
    if not isinstance(document.data, dict):
        raise refuse([document.problem((), "is not an agent card: it must be a mapping of keys")], reason=REASON)
    try:
        card = parse_parameters(AgentCard, document.data, field="")
    except InvalidArgument as error:
        found = [document.problem(locate(v.field), v.description) for v in error.violations]
        raise refuse(found, reason=REASON) from None
    problems = [*_values(card, document), *_prompt(card, document)]
    if problems:
        raise refuse(problems, reason=REASON)
    return card


def write(card: AgentCard, path: Path, *, head: str) -> None:
    """Write a card so that `load` reads the same one, all at once.

    Args:
        head: a line that says where it comes from; becomes a comment.

    Raises:
        OSError: the folder can't be made or written.
    """
    data = asdict(card)
    data |= {"languages": list(card.languages), **{key: [*data[key]] for key in ("policies", "handover")}}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(
        f"# {head}\n{yaml.safe_dump(data, allow_unicode=True, sort_keys=False, width=120)}", encoding="utf-8"
    )
    temporary.replace(path)


def _values(card: AgentCard, document: Document) -> list[FieldViolation]:
    found = []
    if card.schema != 1:
        found.append(document.problem(("schema",), f"must be 1, not {card.schema}; a newer Chatmill may read it"))
    found.extend(
        document.problem((key,), "must not be empty")
        for key in ("name", "company", "system_prompt")
        if not getattr(card, key).strip()
    )
    lists: dict[str, tuple[Any, ...]] = {"policies": card.policies, "handover": card.handover}
    for key, entries in lists.items():
        seen: set[str] = set()
        for position, entry in enumerate(entries):
            if entry.id in seen:
                found.append(document.problem((key, position, "id"), f"{entry.id!r} is used twice; ids are unique"))
            seen.add(entry.id)
    return found


def _prompt(card: AgentCard, document: Document) -> list[FieldViolation]:
    known, at = card.placeholders(), ("system_prompt",)
    try:
        pieces = list(string.Formatter().parse(card.system_prompt))
    except ValueError as error:
        return [document.problem(at, f"has unbalanced braces ({error}); write {{{{ and }}}} for braces of the text")]
    found = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if name not in known:
            known_names = ", ".join("{" + key + "}" for key in known)
            hint = nearest(name, known) or "."
            found.append(document.problem(at, f"unknown placeholder {{{name}}}{hint} Known: {known_names}."))
        elif spec or conversion:
            found.append(document.problem(at, f"{{{name}}} takes no format"))
    return found
