"""A customer played by a model. It informs and never decides: played customers are too kind and too patient (arXiv
2603.11245).

What it says is paid for like what the agent and the judge say, and kept like it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from eval_svc import seeds
from eval_svc.judging import Answers
from eval_svc.scenario import Scenario
from eval_svc.target import Target, TargetInfo, TurnRequest
from eval_svc.transcript import Exchange, Failure, Message, Reply

END = "[END]"
"""What the played customer says when the goal is reached, or hopeless."""

MAX_WORDS_TOKENS = 128

PROMPT = """\
You play a customer who writes to a customer service. Stay in this part; never speak as the service, never help it.
Write only what the customer writes next: one or two short sentences{language}. Reveal what you know only when asked.
When your goal is reached, or you would give up, write only {end}.
Your goal: {goal}
You are: {who}
"""


@dataclass(frozen=True, slots=True)
class PlayedCustomer:
    """The customer of one scenario.

    Attributes:
        target: the model that plays.
        seed: of the trial.
    """

    target: Target
    scenario: Scenario
    seed: int
    timeout_s: float = 60.0

    def prompt(self) -> str:
        """What the model is told about its part."""
        persona = self.scenario.persona
        who = ", ".join(part for part in (persona.name, persona.mood, persona.style) if part) or "an ordinary customer"
        language = f", in {persona.language}" if persona.language else ""
        return PROMPT.format(language=language, end=END, goal=self.scenario.goal, who=who)

    async def next(self, exchanges: list[Exchange]) -> str | Failure | None:
        """The customer's next words; None when the customer has gone; a Failure if the model could not play."""
        # the sides are swapped: for the model that plays, the agent under test is the user
        messages = [Message("user", "Hello, how can I help you?")]
        for exchange in exchanges:
            messages.append(Message("assistant", exchange.user))
            if exchange.reply is not None:
                messages.append(Message("user", exchange.reply.text))
        request = TurnRequest(
            conversation=f"customer/{self.scenario.id}",
            system=self.prompt(),
            facts=(),
            messages=tuple(messages),
            seed=seeds.derive(self.seed, "customer", len(exchanges)),
            max_output_tokens=MAX_WORDS_TOKENS,
            temperature=0.7,
            timeout_s=self.timeout_s,
            agent=False,
        )
        reply = await self.target.reply(request)
        if reply.failure is not None:
            # whatever befalls the played customer is the evaluator's fault, never the agent's
            return Failure("evaluator", reply.failure.status, f"the played customer: {reply.failure.detail}")
        words = reply.text.split(END)[0].strip()
        return words or None


def kept_under(identity: str, request: TurnRequest) -> str:
    """The key of an answer: who plays, the part, the seed and all that was said. Both sides of a comparison share it as
    long as they answered alike."""
    said = [(m.role, m.content) for m in request.messages]
    content = json.dumps(["customer", identity, request.system, request.seed, said])
    return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class KeptCustomer:
    """The model that plays customers; each answer is kept before the agent hears it, and is not asked for again.

    Attributes:
        target: the model.
        identity: who plays: another model's answers are not this one's.
        answers: what it has said already.
    """

    target: Target
    identity: str
    answers: Answers

    async def describe(self) -> TargetInfo:
        """See `Target`."""
        return await self.target.describe()

    async def reply(self, request: TurnRequest) -> Reply:
        """See `Target`; an answer that was kept has no times."""
        key = kept_under(self.identity, request)
        known = self.answers.find(key)
        if known is not None:
            return Reply(known)
        reply = await self.target.reply(request)
        if reply.failure is None:
            self.answers.keep(key, reply.text)
        return reply
