"""What a generation is asked for and what comes back, as plain data.

Everything in `inference_svc` speaks these types: the servicer converts the contract into them, the pipeline passes them
on, engines answer with them. This module knows no contract, no engine and no tokenizer.

A generation is a sequence of events: one `Started`, then any number of others, then exactly one `Finished`. A failure
is an exception of `chatmill.errors`, never an event. Times are integer microseconds measured on one process's
monotonic clock, so that they add up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """Who speaks. The values are what chat templates expect."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"
    TOOL = "tool"


@dataclass(frozen=True, slots=True)
class FunctionCall:
    """A tool call inside an assistant message of the history.

    Attributes:
        name: name of the tool.
        arguments: JSON object as text, exactly as the model wrote it.
        id: identity that the answering TOOL message repeats; may be empty.
    """

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation that the model continues.

    Attributes:
        role: who speaks.
        content: plain text. Template tokens in it, such as `<|assistant|>`, are text like any other.
        tool_calls: calls that an assistant turn made.
        tool_call_id: on TOOL turns, the call that this answers.
    """

    role: Role
    content: str
    tool_calls: tuple[FunctionCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool that the model may call.

    Attributes:
        name: what the model writes to call it.
        description: when to call it, for the model.
        json_schema: JSON Schema of the arguments object.
    """

    name: str
    description: str = ""
    json_schema: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterKey:
    """Identity of an adapter. State of one revision is never used for another, whatever the name says."""

    name: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}" if self.revision else self.name


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen and when to stop. The defaults change nothing and sample at temperature 1.

    Attributes:
        max_output_tokens: most tokens to generate, at least 1; the end-of-turn token counts as one. None takes the
            engine's default, or what the context leaves if that is less.
        min_output_tokens: the end-of-turn token and stop sequences are not taken before so many tokens.
        temperature: 0 takes the most likely token; otherwise the logits are divided by it.
        top_p: keep the most likely tokens that together have this probability, in (0, 1].
        top_k: keep so many of the most likely tokens; 0 keeps all.
        min_p: drop tokens less likely than this share of the most likely one, in [0, 1].
        repetition_penalty: above 1 makes tokens of the prompt and the output less likely (Keskar et al. 2019).
        presence_penalty: taken off the logit of each token that the output has, in [-2, 2].
        frequency_penalty: taken off the logit for each time the output has the token, in [-2, 2].
        seed: the same seed gives the same text whatever runs beside it. None draws one, which `Finished` reports.
        stop_sequences: texts that end the output wherever they appear, also across token boundaries.
        stop_token_ids: tokens that end the output like the end-of-turn token does.
        include_stop: leave the matched stop sequence in the text.
        ignore_eos: go on after the end-of-turn token; for load tests.
        logprobs: None for none, else each token comes with its log probability and so many alternatives. They are those
            of the model before temperature, penalties and truncation.
    """

    max_output_tokens: int | None = None
    min_output_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_sequences: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None


class ConstraintKind(StrEnum):
    """The form in which a constraint on the output is written."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICES = "choices"
    GRAMMAR = "grammar"


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the output must look like. It holds for the whole output; the end-of-turn token comes when it is complete.

    Attributes:
        kind: the form.
        value: JSON Schema as JSON text, a regular expression, or a Lark grammar; empty for CHOICES.
        choices: for CHOICES, the texts of which the output must be one.
    """

    kind: ConstraintKind
    value: str = ""
    choices: tuple[str, ...] = ()


class Overflow(StrEnum):
    """What to do with a prompt that does not fit the context beside `max_output_tokens`."""

    REJECT = "reject"
    """Raise InvalidArgument, reason `CONTEXT_OVERFLOW`."""
    TRUNCATE_OLDEST = "truncate_oldest"
    """Drop the oldest messages that are not SYSTEM; `Started.truncated_messages` counts them."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One generation, as an engine takes it. Exactly one of `messages`, `text` and `token_ids` is given.

    Attributes:
        request_id: unique among running requests; `Engine.cancel` takes it.
        adapter: adapter to apply, or None for the base as it is.
        messages: conversation for the model's chat template, to be continued by an assistant turn.
        text: prompt text that is tokenized as it stands, without a template; special tokens in it stay text.
        token_ids: prompt that is ready; ids in [0, vocabulary size).
        tools: for the chat template.
        sampling: how to choose and when to stop.
        constraint: what the output must look like, or None.
        overflow: what to do when the prompt is too long. TRUNCATE_OLDEST needs `messages`.
        max_prompt_tokens: a bound below the model's own context, or None.
        deadline: `time.monotonic()` second at which it ends with TIME_LIMIT, waiting or running; None is never.
        flush_tokens: hand out text once so many tokens have gathered; None leaves it to the engine.
        flush_interval: longest time in seconds that text is kept back to gather; None leaves it to the engine.
        cache_salt: prompts are shared through the prefix cache only among requests of the same salt.
    """

    request_id: str
    adapter: AdapterKey | None = None
    messages: tuple[Message, ...] = ()
    text: str | None = None
    token_ids: tuple[int, ...] = ()
    tools: tuple[Tool, ...] = ()
    sampling: Sampling = Sampling()
    constraint: Constraint | None = None
    overflow: Overflow = Overflow.REJECT
    max_prompt_tokens: int | None = None
    deadline: float | None = None
    flush_tokens: int | None = None
    flush_interval: float | None = None
    cache_salt: str = ""


class FinishReason(StrEnum):
    """Why a generation ended."""

    END_OF_TURN = "end_of_turn"
    """The model ended its turn."""
    STOP_SEQUENCE = "stop_sequence"
    """A stop sequence or stop token of the request matched."""
    MAX_TOKENS = "max_tokens"
    """`max_output_tokens` were generated."""
    CONTEXT_FULL = "context_full"
    """Prompt and output fill the model's context."""
    TOOL_CALLS = "tool_calls"
    """The turn ended in one or more tool calls. Set by the pipeline."""
    CONTENT_BLOCKED = "content_blocked"
    """Moderation ended it. Set by the pipeline."""
    CANCELLED = "cancelled"
    """The caller or an operator cancelled it."""
    TIME_LIMIT = "time_limit"
    """The deadline passed."""
    ENGINE_ABORTED = "engine_aborted"
    """The engine was drained or closed before the end; what was delivered stands."""


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """One alternative at a position: token id, its text, natural log of its probability."""

    token_id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of a generated token, and the most likely alternatives, best first."""

    token_id: int
    text: str
    logprob: float
    top: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a generation cost, in tokens.

    Attributes:
        prompt_tokens: the whole prompt, cached part included.
        cached_prompt_tokens: the part of the prompt whose state came from the prefix cache.
        output_tokens: all generated tokens, those of a matched stop and the end-of-turn token included.
        discarded_tokens: generated by an attempt that a fallback replaced. Set by the pipeline.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    output_tokens: int = 0
    discarded_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time went, in microseconds.

    Attributes:
        queue_us: from submission to the first prefill chunk.
        prefill_us: from there to the first token.
        time_to_first_token_us: from submission to the first token.
        decode_us: from the first token to the last.
        total_us: from submission to the end.
        inter_token_mean_us: mean time between tokens; 0 with fewer than two.
        inter_token_max_us: longest time between tokens; 0 with fewer than two.
        moderation_us: spent in moderators. Set by the pipeline.
    """

    queue_us: int = 0
    prefill_us: int = 0
    time_to_first_token_us: int = 0
    decode_us: int = 0
    total_us: int = 0
    inter_token_mean_us: int = 0
    inter_token_max_us: int = 0
    moderation_us: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The request has a row in the engine; the prompt is known.

    Attributes:
        prompt_tokens: length of the prompt as the model sees it.
        cached_prompt_tokens: how much of it the prefix cache held.
        queue_us: time from submission to the first prefill chunk.
        truncated_messages: messages that were dropped to fit the context.
        seed: seed in use; drawn by the engine if the request had none.
    """

    prompt_tokens: int
    cached_prompt_tokens: int = 0
    queue_us: int = 0
    truncated_messages: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Delta:
    """What was generated since the last delivery; never half a character.

    Attributes:
        text: new text. May be empty where a character or a stop sequence is not complete yet.
        token_ids: new tokens, the end-of-turn token excluded. Text may lag behind them.
        logprobs: one per token if they were asked for.
    """

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The end. Nothing follows it.

    Attributes:
        finish_reason: why.
        matched_stop: the stop sequence that matched, or empty.
        matched_token_id: the stop or end-of-turn token that matched, or None.
        usage: tokens.
        timing: microseconds.
        seed: seed that was used.
    """

    finish_reason: FinishReason
    matched_stop: str = ""
    matched_token_id: int | None = None
    usage: Usage = Usage()
    timing: Timing = Timing()
    seed: int = 0


EngineEvent = Started | Delta | Finished
"""What an engine yields. The pipeline adds its own kinds (tool call, handoff, moderation, progress, retracted)."""
