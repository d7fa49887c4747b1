"""What customers say, composed from a bank of phrases: a way of asking around a subject, greetings, slips of typing.

A bank maps acts to `{user, agent}` and topics to their noun phrases, verb phrases and whole sentences. The module knows
neither which company speaks nor what the right answer is.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samples.grammar import Slots, expand
from samples.noise import hurry


@dataclass(frozen=True, slots=True)
class Speech:
    """A language's ways of speaking.

    Attributes:
        acts: frames, openings, closings and the acts of small talk, as in `phrases/acts_*.yaml`.
        language: `en` or `zh`.
        asides: share of messages in which the customer also says something that has nothing to do with the matter.
    """

    acts: Mapping[str, Any]
    language: str
    asides: float = 0.10

    def ask(self, topic: Mapping[str, Any], rng: random.Random, slots: Slots) -> str:
        """A question about the topic, in one of the ways that a customer may put it."""
        way = rng.random()
        kinds: Sequence[str] = [k for k in ("np", "vp", "ask") if topic.get(k)]
        kind = rng.choices(kinds, [{"np": 0.15, "vp": 0.2, "ask": 0.65}[k] for k in kinds])[0]
        said = expand(rng.choice(topic[kind]), rng, slots)
        if kind != "ask":
            frame = rng.choice(self.acts["frames" if kind == "np" else "doing"])
            said = expand(frame, rng, {**slots, "x": said})
        return self.dress(said, rng, slots, question=way < 0.7)

    def say(self, act: str, rng: random.Random, slots: Slots) -> str:
        """What a customer says to this act."""
        said = expand(rng.choice(self.acts[act]["user"]), rng, slots)
        return self.dress(said, rng, slots, question=rng.random() < 0.4, more=0.25)

    def dress(self, said: str, rng: random.Random, slots: Slots, *, question: bool, more: float = 1.0) -> str:
        """`said` with a greeting before it or a plea after it now and then, and typed in a hurry.

        Args:
            said: the core of the message.
            rng: the source of chance.
            slots: what the slots of greetings and stories stand for.
            question: end on a question mark.
            more: scales how often something is added.
        """
        chinese = self.language == "zh"
        parts = [said]
        if rng.random() < self.asides * more:
            parts.insert(0, expand(rng.choice(self.acts["story"]), rng, slots))
        if rng.random() < 0.25 * more:
            parts.insert(0, expand(rng.choice(self.acts["opening"]), rng, slots))
        if question and not parts[-1].endswith((".", "?", "!", "。", "？", "！")):
            parts[-1] += "？" if chinese else "?"
        elif not chinese and rng.random() < 0.5 and parts[-1][-1:].isalnum():
            parts[-1] += "."
        if rng.random() < 0.18 * more:
            parts.append(expand(rng.choice(self.acts["closing"]), rng, slots))
        text = parts[0]
        for part in parts[1:]:
            joint = " " if text[-1:] in ".?!？" else rng.choice(self.acts["connect"])
            if rng.random() < 0.04:
                joint = "\n"
            text += joint + (part[:1].upper() + part[1:] if joint.strip() in (".", "!") or text[-1:] in ".?!" else part)
        return hurry(text, rng)

    def answer(self, act: str, rng: random.Random, slots: Slots) -> str:
        """What the agent says to this act."""
        return expand(rng.choice(self.acts[act]["agent"]), rng, slots)


def transfer(text: str, reason: str) -> str:
    """An agent's turn that hands over to a person: what is said, then the call."""
    return text + '\n<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "' + reason + '"}}</tool_call>'
