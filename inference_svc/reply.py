"""Turns an engine's text into what the client gets: tool calls found, moderated, counted, cut into deltas.

One `Reply` belongs to one attempt on one engine. It is fed with what the engine delivers, not token by token, and
yields events ready to send. This module knows no engine and no contract.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field

from inference_svc import metrics
from inference_svc.events import HandedOver, ReplyDelta, ReplyEvent, ToolCalled
from inference_svc.generation import Delta, FunctionCall, TokenLogprob
from inference_svc.moderation.base import Action, Stage
from inference_svc.moderation.guard import Passed, Verdict
from inference_svc.moderation.policy import Moderation
from inference_svc.toolcalls import ParsedCall, ToolCallParser


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """How a client wants its reply.

    Attributes:
        text_so_far: deltas carry the whole text.
        want_token_ids: deltas carry token ids.
        mode: moderation mode.
        holdback: characters kept back at least.
        system_prompt: what must not leak.
        blocked_reply: text that stands in for what was blocked; empty for none.
    """

    text_so_far: bool = False
    want_token_ids: bool = False
    mode: str = "default"
    holdback: int = 0
    system_prompt: str = ""
    blocked_reply: str = ""


@dataclass(slots=True)
class _Tokens:
    """Tokens whose text has not left yet; they leave with it, since they say the same."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Reply:
    """One reply as it grows.

    Args:
        options: what the client wants.
        moderation: opens the guard.

    Attributes:
        sent: characters of text that were yielded.
        blocked: moderation stopped it.
        called: the model called a tool or handed over.
        malformed_tool_calls: calls that were left as text.
    """

    def __init__(self, options: ReplyOptions, moderation: Moderation) -> None:
        self.sent = 0
        self.blocked = False
        self.called = False
        self._options = options
        self._moderation = moderation
        self._guard = moderation.open(
            Stage.OUTPUT, options.mode, system_prompt=options.system_prompt, holdback=options.holdback
        )
        self._parser = ToolCallParser()
        self._tokens = _Tokens()
        self._text: list[str] = []
        self._read = 0
        self._calls: deque[tuple[int, ParsedCall]] = deque()
        self._call_count = 0

    @property
    def malformed_tool_calls(self) -> int:
        """Calls that were left as text because they were not valid."""
        return self._parser.malformed

    @property
    def moderation_us(self) -> int:
        """Time spent in moderators."""
        return int(self._guard.seconds * 1e6) if self._guard else 0

    def feed(self, delta: Delta) -> list[ReplyEvent]:
        """Events for what the engine delivered."""
        if self.blocked:
            return []
        if self._options.want_token_ids:
            self._tokens.ids.extend(delta.token_ids)
        if delta.logprobs:
            self._tokens.logprobs.extend(delta.logprobs)
        return self._pieces(self._parser.feed(delta.text))

    async def finish(self) -> list[ReplyEvent]:
        """Events for what was kept back, now that nothing follows."""
        if self.blocked:
            return []
        events = self._pieces(self._parser.finish())
        guard = self._guard
        if guard is not None and not self.blocked:
            self._pass(guard.feed("", final=True), events)
            if guard.judged:
                self._pass(await guard.judge(), events)
        if not self.blocked:
            self._release_calls(events)
            self._emit("", events)
        return events

    def _pieces(self, pieces: list[str | ParsedCall]) -> list[ReplyEvent]:
        events: list[ReplyEvent] = []
        for piece in pieces:
            if isinstance(piece, ParsedCall):
                self._calls.append((self._read, piece))
                self._release_calls(events)
            elif self._guard is None:
                self._read += len(piece)
                self._emit(piece, events)
            else:
                self._read += len(piece)
                self._pass(self._guard.feed(piece), events)
            if self.blocked:
                break
        return events

    def _pass(self, passed: Passed, events: list[ReplyEvent]) -> None:
        if any(v.action is not Action.REPORTED for v in passed.verdicts):
            # The tokens spell out what was masked.
            self._tokens = _Tokens()
        self._emit(passed.text, events)
        self._record(passed.verdicts, events)
        if passed.blocked and not self.blocked:
            self.blocked = True
            self._calls.clear()
            self._emit(self._options.blocked_reply, events)
        elif self._calls:
            self._release_calls(events)

    def _emit(self, text: str, events: list[ReplyEvent]) -> None:
        tokens = self._tokens
        due = (tokens.ids or tokens.logprobs) and not self._holding()
        if not text and not due:
            return
        offset = self.sent
        self.sent += len(text)
        if self._options.text_so_far:
            self._text.append(text)
            text, offset = "".join(self._text), 0
            self._text = [text]
        if due:
            events.append(ReplyDelta(text, offset, tuple(tokens.ids), tuple(tokens.logprobs)))
            self._tokens = _Tokens()
        else:
            events.append(ReplyDelta(text, offset))

    def _holding(self) -> bool:
        return self._guard is not None and self._guard.held > 0

    def _release_calls(self, events: list[ReplyEvent]) -> None:
        """Calls whose preceding text has left; before that, moderation may still stop the reply."""
        released = self._read if self._guard is None else self._guard.released
        while self._calls and self._calls[0][0] <= released:
            _, parsed = self._calls.popleft()
            self.called = True
            call = FunctionCall(parsed.name, parsed.arguments, f"call_{self._call_count}")
            self._call_count += 1
            events.append(self._handoff(call, parsed.reason, events) if parsed.is_handoff else ToolCalled(call))

    def _handoff(self, call: FunctionCall, reason: str, events: list[ReplyEvent]) -> HandedOver:
        """The reason is text of the model that people read, so it is moderated like the rest."""
        guard = self._moderation.open(Stage.OUTPUT, self._options.mode, system_prompt=self._options.system_prompt)
        if guard is None:
            return HandedOver(reason, call)
        passed = guard.feed(reason, final=True)
        self._record(passed.verdicts, events)
        if passed.text != reason and not guard.judged:
            arguments = {**json.loads(call.arguments), "reason": passed.text}
            call = FunctionCall(call.name, json.dumps(arguments, ensure_ascii=False), call.id)
            reason = passed.text
        return HandedOver(reason, call)

    @staticmethod
    def _record(verdicts: list[Verdict], events: list[ReplyEvent]) -> None:
        for verdict in verdicts:
            record(verdict)
            events.append(verdict)


def record(verdict: Verdict) -> None:
    """Count a finding."""
    metrics.MODERATED.labels(verdict.stage, verdict.moderator, verdict.category, verdict.action).inc()
