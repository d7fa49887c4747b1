"""Puts the moderators of one request together: what may leave, what is replaced, what ends the reply.

Enforced moderators hold text back until they are sure of it, and only as long; reported ones never delay anything. This
module knows no rule of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from chatmill.errors import ChatmillError
from inference_svc.moderation.base import (
    Action,
    Finding,
    Judgement,
    ModerationContext,
    Moderator,
    Response,
    Scanner,
    Stage,
)

_LATER = 400
"""Characters that gather for rules that only report."""
PIECE = 1024
"""Characters of a whole text that are looked at in one go, a millisecond or so."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A moderator in the operator's configuration.

    Attributes:
        name: name of the moderator.
        moderator: what looks.
        response: what to do about a finding.
        stages: where it looks.
        fail_closed: for judges: block when the judge can't be asked, instead of letting the text pass.
    """

    name: str
    moderator: Moderator
    response: Response = Response.REPORT
    stages: frozenset[Stage] = frozenset(Stage)
    fail_closed: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """Something that was found, and what was done.

    Attributes:
        stage: what was looked at.
        action: what was done.
        moderator: who found it.
        category: what it is.
        score: how sure, 0 to 1.
        start: first character of the span; of the delivered reply for OUTPUT, of the looked-at message for INPUT.
        end: the character after its last. A blocked span was never delivered, so there it equals `start`.
    """

    stage: Stage
    action: Action
    moderator: str
    category: str
    score: float
    start: int
    end: int


@dataclass(slots=True)
class Passed:
    """What came of a piece of text.

    Attributes:
        text: what may leave now.
        verdicts: what was found, in order.
        blocked: nothing more may leave.
    """

    text: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class _Objection:
    """A finding with the rule that made it."""

    finding: Finding
    rule: str


@dataclass(frozen=True, slots=True)
class _Watch:
    rule: str
    scanner: Scanner
    response: Response


class Guard:
    """Looks at one text as it grows.

    Args:
        rules: what looks, with what is to be done.
        context: what is looked at.
        holdback: characters that are kept back at least, for callers who want a longer look before text leaves.

    Attributes:
        seconds: time spent looking.
    """

    def __init__(self, rules: Sequence[Rule], context: ModerationContext, holdback: int = 0) -> None:
        self.seconds = 0.0
        self._stage = context.stage
        self._enforced: list[_Watch] = []
        self._reported: list[_Watch] = []
        self._later: list[str] = []
        self._later_size = 0
        self._judges: list[tuple[Rule, Judgement]] = []
        for rule in rules:
            opened = rule.moderator.open(context) if context.stage in rule.stages else None
            if callable(opened):
                self._judges.append((rule, opened))
            elif opened is not None:
                watches = self._reported if rule.response is Response.REPORT else self._enforced
                watches.append(_Watch(rule.name, opened, rule.response))
        self._holdback = holdback
        self._held = ""
        self._read = 0
        self._released = 0
        self._shifts = [(0, 0)]
        self._redactions: list[_Objection] = []
        self._blocked = False
        # What a judge that enforces has not seen does not leave.
        self._unjudged = any(rule.response is not Response.REPORT for rule, _ in self._judges)
        self._whole: list[str] = []

    @property
    def idle(self) -> bool:
        """Whether nothing looks at this text, so that it can pass by."""
        return not self._enforced and not self._reported and not self._judges and not self._holdback

    @property
    def held(self) -> int:
        """Characters that are kept back."""
        return len(self._held)

    @property
    def released(self) -> int:
        """Characters of the text that have left, those that were replaced included."""
        return self._released

    @property
    def judged(self) -> bool:
        """Whether `judge` has to be awaited at the end of the text."""
        return bool(self._judges) and not self._blocked

    def feed(self, text: str, *, final: bool = False) -> Passed:
        """Look at the next piece; `final` says that nothing follows. With judges that enforce, nothing passes here."""
        if self._blocked:
            return Passed(blocked=True)
        begun = time.perf_counter()
        self._held += text
        self._read += len(text)
        if self._judges:
            self._whole.append(text)
        passed = Passed()
        blocks: list[_Objection] = []
        clear = not (self._holdback or self._redactions or self._unjudged)
        for watch in self._enforced:
            for finding in watch.scanner.feed(text, final=final):
                self._object(_Objection(finding, watch.rule), watch.response, passed, blocks)
                clear = False
            clear = clear and watch.scanner.safe >= self._read
        if self._reported:
            self._look_later(text, final, passed, blocks)
        if clear:
            # What most pieces meet: nothing found, nothing to wait for.
            passed.text, self._held = self._held, ""
            self._released = self._read
        else:
            self._release(passed, blocks, final)
        self.seconds += time.perf_counter() - begun
        return passed

    async def feed_whole(self, text: str) -> Passed:
        """`feed` with all of the text, which may be megabytes: in pieces, between which others have their turn."""
        passed = Passed()
        for start in range(0, max(1, len(text)), PIECE):
            if start:
                await asyncio.sleep(0)
            part = self.feed(text[start : start + PIECE], final=start + PIECE >= len(text))
            passed.text += part.text
            passed.verdicts += part.verdicts
            passed.blocked = part.blocked
            if part.blocked:
                break
        return passed

    def _look_later(self, text: str, final: bool, passed: Passed, blocks: list[_Objection]) -> None:
        """Rules that only report delay nothing, so they look at larger pieces, which costs less."""
        self._later.append(text)
        self._later_size += len(text)
        if not final and self._later_size < _LATER:
            return
        text = "".join(self._later)
        self._later, self._later_size = [], 0
        for watch in self._reported:
            for finding in watch.scanner.feed(text, final=final):
                self._object(_Objection(finding, watch.rule), watch.response, passed, blocks)

    async def judge(self) -> Passed:
        """Ask the judges about the whole text, then let pass what they allow. Call once, after the final piece."""
        begun = time.perf_counter()
        passed = Passed()
        blocks: list[_Objection] = []
        text = "".join(self._whole)
        answers = await asyncio.gather(*(_ask(judge, text) for _, judge in self._judges))
        for (rule, _), findings in zip(self._judges, answers, strict=True):
            for finding in findings:
                sure = finding.score > 0 or rule.fail_closed
                self._object(_Objection(finding, rule.name), rule.response if sure else Response.REPORT, passed, blocks)
        self._unjudged = False
        self._release(passed, blocks, final=True)
        self.seconds += time.perf_counter() - begun
        return passed

    def _object(self, objection: _Objection, response: Response, passed: Passed, blocks: list[_Objection]) -> None:
        if response is Response.REPORT:
            start, end = objection.finding.start, objection.finding.end
            passed.verdicts.append(
                self._verdict(objection, Action.REPORTED, start + self._shift(start), end + self._shift(start))
            )
        else:
            (self._redactions if response is Response.REDACT else blocks).append(objection)

    def _release(self, passed: Passed, blocks: list[_Objection], final: bool) -> None:
        until = self._read if final else self._read - self._holdback
        for watch in self._enforced:
            until = min(until, watch.scanner.safe)
        first = min(blocks, key=lambda b: b.finding.start, default=None)
        if first is not None:
            until = min(until, first.finding.start)
        if not self._unjudged:
            passed.text = self._masked(until, passed)
        if first is not None:
            at = self._released + self._shifts[-1][1]
            passed.verdicts.append(self._verdict(first, Action.BLOCKED, at, at))
            passed.blocked = self._blocked = True
            self._held = ""

    def _masked(self, until: int, passed: Passed) -> str:
        out: list[str] = []
        self._redactions.sort(key=lambda r: (r.finding.start, -r.finding.end))
        while self._redactions and self._redactions[0].finding.start < until:
            objection = self._redactions.pop(0)
            finding = objection.finding
            if finding.end <= self._released:
                continue
            out.append(self._take(finding.start))
            removed = len(self._take(finding.end))
            shift = self._shifts[-1][1]
            at = self._released - removed + shift
            self._shifts.append((self._released, shift + len(finding.placeholder) - removed))
            out.append(finding.placeholder)
            passed.verdicts.append(self._verdict(objection, Action.REDACTED, at, at + len(finding.placeholder)))
        out.append(self._take(until))
        return "".join(out)

    def _take(self, until: int) -> str:
        count = max(0, until - self._released)
        taken, self._held = self._held[:count], self._held[count:]
        self._released += len(taken)
        return taken

    def _shift(self, offset: int) -> int:
        """How far what was redacted before moves a character of the text in the delivered one."""
        return next(shift for at, shift in reversed(self._shifts) if at <= offset)

    def _verdict(self, objection: _Objection, action: Action, start: int, end: int) -> Verdict:
        finding = objection.finding
        return Verdict(self._stage, action, objection.rule, finding.category, finding.score, start, end)


async def _ask(judge: Judgement, text: str) -> list[Finding]:
    try:
        return await judge(text)
    except ChatmillError as error:
        # Reported in any case; `fail_closed` decides whether it also stops the text.
        return [Finding(0, len(text), f"judge_unavailable_{error.reason.lower()}", 0.0)]
