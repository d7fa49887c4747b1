"""What runs when: which rows are in the batch, how much prompt is read between two steps, who ends.

One `step` is: end what was cancelled or is out of time, give free slots to waiting rows, read one bounded chunk of
prompts, then one token for every row that is past its prompt. Everything happens on one thread; this module knows no
asyncio, no tokenizer file and no wire.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

import torch

from chatmill.errors import Aborted, ChatmillError, Internal
from inference_svc.engines.rows.adapters import AdapterBank, Mix
from inference_svc.engines.rows.detokenize import TextTable
from inference_svc.engines.rows.forward import Forward, Prefill
from inference_svc.engines.rows.prefix_cache import BLOCK, PrefixCache
from inference_svc.engines.rows.row import Row
from inference_svc.engines.rows.sampling import Choice, choose
from inference_svc.engines.rows.store import RowStore
from inference_svc.generation import EngineEvent, FinishReason, TokenLogprob, TopLogprob

MESSAGE_SECONDS = 0.005
"""Deliveries are spaced so that all rows together cause about one message in this time: service and client spend up to
600 microseconds on each, on cores that the model needs too."""
LONGEST_HOLD = 0.16
"""But no text waits longer than this for the next delivery, in seconds."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one scheduler.

    Attributes:
        prefill_tokens: prompt tokens read between two decode steps, padding included.
    """

    prefill_tokens: int = 512


class Scheduler:
    """Rows over one model.

    Args:
        forward: the model.
        store: its states.
        bank: adapters that rows name by index.
        cache: prefix cache over the same store.
        table: token texts, for logprobs.
        emit: called with every event of a row, in order.
        fail: called once instead of a last event when a row breaks.
        limits: see there.
        hand_out: called before a prefill, so that what is known already does not wait for it.
        hand_over: called between prefill and decode, so that first tokens don't wait for the second ones; returns
            when they are on their way.
    """

    def __init__(
        self,
        forward: Forward,
        store: RowStore,
        bank: AdapterBank,
        cache: PrefixCache,
        table: TextTable,
        emit: Callable[[Row, EngineEvent], None],
        fail: Callable[[Row, ChatmillError], None],
        limits: Limits,
        hand_out: Callable[[], None] = lambda: None,
        hand_over: Callable[[], None] = lambda: None,
    ) -> None:
        self.forward, self._store, self._cache, self._table = forward, store, cache, table
        self.bank = bank
        self._emit, self._fail, self._limits = emit, fail, limits
        self._hand_out, self._hand_over = hand_out, hand_over
        self.waiting: deque[Row] = deque()
        self._slots: list[Row | None] = []
        self._prefilling: list[Row] = []
        self._by_id: dict[str, Row] = {}
        self._cancelled: set[str] = set()
        self._timed = 0
        self.finished: Counter[str] = Counter()
        self.prompt_tokens = self.output_tokens = 0
        self.step_seconds = 0.0

    def add(self, row: Row) -> None:
        """Queue a row."""
        self.waiting.append(row)
        self._by_id[row.request.request_id] = row
        self._timed += row.request.deadline is not None

    def cancel(self, request_id: str) -> None:
        """End a row at the beginning of the next step; unknown ids are ignored."""
        if request_id in self._by_id:
            self._cancelled.add(request_id)

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._by_id

    @property
    def running(self) -> int:
        """Rows with a slot."""
        return len(self._by_id) - len(self.waiting)

    def rows(self) -> list[Row]:
        """All rows, waiting or running."""
        return list(self._by_id.values())

    @property
    def token_budget(self) -> int:
        """Positions that rows may take together."""
        return self._store.token_budget

    def broken(self, error: Exception) -> None:
        """A step raised what it should not: end every row."""
        for row in self.rows():
            self._break(row, Aborted(f"the engine failed on a step: {error}", reason="ENGINE_FAILURE"))

    def release(self) -> None:
        """Free the states. Nothing can run afterwards."""
        self._cache.clear()
        self._store.planes, self._store.keys, self._store.values = [], [], []

    @property
    def state_tokens(self) -> int:
        """Positions that running rows hold."""
        return sum(row.filled for row in self._slots if row is not None)

    def step(self) -> None:
        """One round; returns after at most one prefill chunk and one decode step."""
        self._end_early()
        self._admit()
        with torch.inference_mode():
            if self._prefilling:
                self._hand_out()
                self._guarded(self._prefill)
                self._hand_over()
            if any(row is not None and row.output for row in self._slots):
                self._guarded(self._decode)

    def abort_all(self, reason: FinishReason) -> None:
        """End every row now."""
        for row in self.rows():
            self._end(row, reason)

    # Ending

    def _end_early(self) -> None:
        if self._cancelled:
            for request_id in self._cancelled:
                if row := self._by_id.get(request_id):
                    self._end(row, FinishReason.CANCELLED)
            self._cancelled.clear()
        if self._timed:
            now = monotonic()
            for row in self.rows():
                if row.request.deadline is not None and now >= row.request.deadline:
                    self._end(row, FinishReason.TIME_LIMIT)

    def _end(self, row: Row, reason: FinishReason, stop: str = "", token: int | None = None) -> None:
        now = monotonic()
        row.settle(matched=bool(stop))
        if (delta := row.flush(now)) is not None:
            self._emit(row, delta)
        self._leave(row)
        self.finished[reason.value] += 1
        self._emit(row, row.finish(reason, stop, token, now))

    def _break(self, row: Row, error: ChatmillError) -> None:
        slot = row.slot
        self._leave(row)
        if slot >= 0:
            self._store.clear(slot)
        self.finished["error"] += 1
        self._fail(row, error)

    def _leave(self, row: Row) -> None:
        """Give the slot back."""
        self._by_id.pop(row.request.request_id, None)
        self._timed -= row.request.deadline is not None
        if row.slot < 0:
            self.waiting.remove(row)
            return
        self._slots[row.slot] = None
        if not row.output and row in self._prefilling:
            self._prefilling.remove(row)
        row.slot = -1

    def _guarded(self, work: Callable[[], None]) -> None:
        """Run a part of the step. What the model raises (out of memory, say) ends the rows it was working on."""
        try:
            work()
        except ChatmillError:
            raise
        except Exception as error:
            broken = list(self._prefilling) if work == self._prefill else [r for r in self._slots if r and r.output]
            for row in broken:
                self._break(row, Aborted(f"the model failed on a step: {error}", reason="ENGINE_FAILURE"))

    # Admission

    def _admit(self) -> None:
        while self.waiting:
            row = self.waiting[0]
            slot = next((i for i, r in enumerate(self._slots) if r is None), len(self._slots))
            columns = max([len(r.prompt) + r.limit for r in self._slots if r] + [len(row.prompt) + row.limit])
            rows = max(slot + 1, len(self._slots))
            if not self._store.fits(rows, columns):
                break
            self.waiting.popleft()
            self._store.reserve(rows, columns)
            if slot == len(self._slots):
                self._slots.append(row)
            else:
                self._slots[slot] = row
            row.slot = slot
            at = 0
            for states in self._cache.find(row.root, row.prompt):
                self._store.put(slot, at, states)
                at += BLOCK
            row.filled = row.cached = at
            self.prompt_tokens += len(row.prompt)
            self._prefilling.append(row)
            self._emit(row, row.start(monotonic()))
        self._compact()

    def _compact(self) -> None:
        """Close holes from the top, so that decoding covers as few slots as there are rows."""
        slots = self._slots
        while slots and slots[-1] is None:
            slots.pop()
        if self.waiting:
            return
        for hole in range(len(slots)):
            if hole >= len(slots):
                break
            if slots[hole] is None:
                row = slots.pop()
                assert row is not None
                self._store.move(row.slot, hole, row.filled)
                slots[hole], row.slot = row, hole
                while slots and slots[-1] is None:
                    slots.pop()

    # The two kinds of work

    def _prefill(self) -> None:
        first = self._prefilling[0]
        start = first.filled
        budget = self._limits.prefill_tokens
        length = min(len(first.prompt) - start, budget)
        rows = [first]
        for row in self._prefilling[1:]:
            rest = min(len(row.prompt) - start, budget)
            longest = max(length, rest)
            if row.filled == start and longest * (len(rows) + 1) <= budget and longest <= 2 * min(length, rest):
                rows.append(row)
                length = longest
        device = self._store.device
        pieces = [row.prompt[start : start + length] for row in rows]
        chunk = Prefill(
            slots=[row.slot for row in rows],
            tokens=torch.tensor([piece + [0] * (length - len(piece)) for piece in pieces], device=device),
            start=start,
            last=torch.tensor([len(piece) - 1 for piece in pieces], device=device),
            mix=self._mix(rows),
        )
        logits = self.forward.prefill(chunk)
        ready = []
        for index, (row, piece) in enumerate(zip(rows, pieces, strict=True)):
            row.filled = start + len(piece)
            if row.filled == len(row.prompt):
                ready.append(index)
        if ready:
            done = [rows[index] for index in ready]
            for row in done:
                self._prefilling.remove(row)
                self._remember(row)
            self._take(done, choose(logits[ready], [row.sampling for row in done]))

    def _remember(self, row: Row) -> None:
        missing = self._cache.missing(row.root, row.prompt)
        if missing:
            states = [self._store.take(row.slot, start, start + BLOCK) for start in missing]
            self._cache.add(row.root, row.prompt, states)

    def _decode(self) -> None:
        began = monotonic()
        slots = self._slots
        tokens = [row.output[-1] if row is not None and row.output else 0 for row in slots]
        positions = [row.filled if row is not None else 0 for row in slots]
        width = 1 + max(row.filled for row in slots if row is not None and row.output)
        device = self._store.device
        logits = self.forward.decode(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), width, self._mix(slots)
        )
        rows = [row if row is not None and row.output else None for row in slots]
        choices = choose(logits, [row.sampling if row is not None else None for row in rows])
        running = [row for row in rows if row is not None]
        for row in running:
            row.filled += 1
        self._take(running, [choice for row, choice in zip(rows, choices, strict=True) if row is not None])
        self.step_seconds += 0.1 * (monotonic() - began - self.step_seconds)

    def _mix(self, rows: list[Row | None] | list[Row]) -> Mix | None:
        return self.bank.mix([row.adapter if row is not None else 0 for row in rows])

    # After a token

    def _take(self, rows: list[Row], choices: list[Choice]) -> None:
        now = monotonic()
        hold = min(LONGEST_HOLD, MESSAGE_SECONDS * len(rows))
        for row, choice in zip(rows, choices, strict=True):
            if choice.token < 0:
                self._break(row, _bad_row(row))
                continue
            self.output_tokens += 1
            ending = row.accept(choice, self._logprob(row, choice), now)
            if ending is not None:
                self._end(row, *ending)
            elif row.constraint is not None and not self._constrain(row):
                self._break(row, _bad_row(row))
            elif self._due(row, now, hold) and (delta := row.flush(now)) is not None:
                self._emit(row, delta)

    @staticmethod
    def _constrain(row: Row) -> bool:
        """Ask the constraint about the token after the last one; False if it can't go on."""
        assert row.constraint is not None
        if not row.constraint.take(row.output[-1]):
            return False
        row.sampling.allowed = row.constraint.allowed()
        return True

    @staticmethod
    def _due(row: Row, now: float, hold: float) -> bool:
        request = row.request
        if request.flush_tokens is not None and row.gathered() >= request.flush_tokens:
            return True
        if request.flush_interval is not None:
            hold = request.flush_interval
        elif request.flush_tokens is not None:
            return False
        return now - row.delivered >= hold

    def _logprob(self, row: Row, choice: Choice) -> TokenLogprob | None:
        if row.request.sampling.logprobs is None:
            return None
        text = self._table.text
        top = tuple(TopLogprob(token, text([token], special=True), score) for token, score in choice.top)
        return TokenLogprob(choice.token, text([choice.token], special=True), choice.logprob, top)


def _bad_row(row: Row) -> ChatmillError:
    if row.sampling.allowed is not None:
        return Aborted("the constraint allows no further token, though it is not complete.", reason="CONSTRAINT_STUCK")
    return Internal(
        f"the model gave no valid probabilities after {len(row.output)} tokens; its weights or adapter are damaged.",
        reason="NOT_A_NUMBER",
    )
