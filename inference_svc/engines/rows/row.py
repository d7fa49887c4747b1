"""One request inside the engine: where it stands, what it has said, what has not been delivered yet.

This module knows no model and no schedule.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from time import monotonic

from inference_svc.engines.rows.constraint import OutputConstraint
from inference_svc.engines.rows.detokenize import StopFinder, TextStream
from inference_svc.engines.rows.sampling import Choice, RowSampling
from inference_svc.generation import (
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Started,
    Timing,
    TokenLogprob,
    Usage,
)


@dataclass(slots=True)
class Row:
    """A request on its way.

    Attributes:
        request: as submitted.
        prompt: ids, at least one.
        sampling: settings and output so far.
        text: decoder of the output.
        stops: finder of stop sequences, or None without any.
        end_ids: tokens that end a turn.
        limit: most output tokens; what the context leaves is already taken into account.
        by_context: `limit` is what the context leaves, less than was asked for.
        constraint: what the output must look like, or None.
        adapter: index in the adapter bank, 0 for the base.
        root: what prefix cache entries of this row hang on.
        truncated_messages: dropped to fit.
        submitted: monotonic second.
        slot: in the store, -1 while waiting.
        filled: positions whose state the store holds.
        cached: of those, how many came from the prefix cache.
    """

    request: GenerationRequest
    prompt: list[int]
    sampling: RowSampling
    text: TextStream
    stops: StopFinder | None
    end_ids: frozenset[int]
    limit: int
    by_context: bool = False
    constraint: OutputConstraint | None = None
    adapter: int = 0
    root: Hashable = 0
    truncated_messages: int = 0
    submitted: float = field(default_factory=monotonic)
    slot: int = -1
    filled: int = 0
    cached: int = 0
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    longest_gap: float = 0.0
    delivered: float = 0.0
    _pieces: list[str] = field(default_factory=list)
    _ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        """Generated ids, the end-of-turn token included."""
        return self.sampling.output

    @property
    def position(self) -> int:
        """Column where the last token's state goes."""
        return self.filled

    def start(self, now: float) -> Started:
        """The row has a slot."""
        self.started = now
        return Started(
            prompt_tokens=len(self.prompt),
            cached_prompt_tokens=self.cached,
            queue_us=_microseconds(now - self.submitted),
            truncated_messages=self.truncated_messages,
            seed=self.sampling.seed,
        )

    def accept(
        self, choice: Choice, logprob: TokenLogprob | None, now: float
    ) -> tuple[FinishReason, str, int | None] | None:
        """Take a token. Returns why it is the last one, with the stop sequence and stop token, or None."""
        token = choice.token
        self.output.append(token)
        if self.first_token:
            self.longest_gap = max(self.longest_gap, now - self.last_token)
        else:
            self.first_token = now
        self.last_token = now
        sampling = self.request.sampling
        count = len(self.output)
        if count > sampling.min_output_tokens or self.constraint is not None:
            if token in self.end_ids and (not sampling.ignore_eos or self.constraint is not None):
                return FinishReason.END_OF_TURN, "", token
            if token in sampling.stop_token_ids:
                return FinishReason.STOP_SEQUENCE, "", token
        self._ids.append(token)
        if logprob is not None:
            self._logprobs.append(logprob)
        piece = self.text.push(token)
        if self.stops is not None and count > sampling.min_output_tokens:
            piece, match = self.stops.push(piece)
            if match:
                self._pieces.append(piece)
                return FinishReason.STOP_SEQUENCE, match, None
        if piece:
            self._pieces.append(piece)
        if count >= self.limit:
            return (FinishReason.CONTEXT_FULL if self.by_context else FinishReason.MAX_TOKENS), "", None
        return None

    def gathered(self) -> int:
        """Tokens that have not been delivered."""
        return len(self._ids)

    def flush(self, now: float) -> Delta | None:
        """What has gathered, or None."""
        if not self._ids and not self._pieces:
            return None
        delta = Delta("".join(self._pieces), tuple(self._ids), tuple(self._logprobs))
        self._pieces, self._ids, self._logprobs = [], [], []
        self.delivered = now
        return delta

    def settle(self, *, matched: bool) -> None:
        """At the end, let go of text that was held back; after a match there is none."""
        if matched:
            return
        tail = self.text.close()
        if self.stops is not None:
            piece, _ = self.stops.push(tail)
            tail = piece + self.stops.close()
        if tail:
            self._pieces.append(tail)

    def finish(self, reason: FinishReason, stop: str, token: int | None, now: float) -> Finished:
        """The last event."""
        count = len(self.output)
        decode = self.last_token - self.first_token
        return Finished(
            finish_reason=reason,
            matched_stop=stop,
            matched_token_id=token,
            usage=Usage(prompt_tokens=len(self.prompt), cached_prompt_tokens=self.cached, output_tokens=count),
            timing=Timing(
                queue_us=_microseconds((self.started or now) - self.submitted),
                prefill_us=_microseconds(self.first_token - self.started) if self.first_token else 0,
                time_to_first_token_us=_microseconds(self.first_token - self.submitted) if self.first_token else 0,
                decode_us=_microseconds(decode),
                total_us=_microseconds(now - self.submitted),
                inter_token_mean_us=_microseconds(decode / (count - 1)) if count > 1 else 0,
                inter_token_max_us=_microseconds(self.longest_gap),
            ),
            seed=self.sampling.seed,
        )


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)
