"""Settings of the rows engine, and the checks of a request that need no model.

This module imports no torch, so that parameters can be shown and checked without it.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Literal

from chatmill.errors import FieldViolation, InvalidArgument
from inference_svc.generation import Constraint, ConstraintKind, GenerationRequest, Sampling

MAX_STOP_SEQUENCES = 64
"""More are refused: each is looked for in every piece of text."""
MAX_STOP_LENGTH = 1024
"""Characters in one stop sequence."""
MAX_LOGPROBS = 20
"""Alternatives per token."""
MAX_CONSTRAINT_LENGTH = 256 * 1024
"""Characters of a schema, expression or grammar, all choices together."""


@dataclass(frozen=True, slots=True)
class RowsParameters:
    """Settings of one engine.

    Attributes:
        quantization: of the base's linear layers: `nf4` (4 bits), `int8`, `none`.
        smallest_quantized_mib: bases with smaller weight files are not quantised, since that would cost speed and save
            next to nothing; `BaseInfo.quantisation` then says `none`.
        device: `cpu`, `cuda`, or `auto`, which takes CUDA where there is one.
        dtype: of weights that are not quantised, and of the states; `auto` takes that of the weights file, but
            float32 on a CPU that has no arithmetic for it.
        threads: CPU threads of torch in this process; 0 takes up to one per core, as many as make a step fastest at
            the time.
        max_rows: requests that run at once.
        max_waiting: requests that may wait inside the engine; more are refused.
        context_length: most tokens of prompt and output together; 0 takes the model's own bound.
        token_budget: most positions (rows times columns) of key-value memory; 0 derives it from `max_rows` rows of the
            context length or 4096, whichever is less.
        prefill_tokens: prompt tokens that are read between two steps of the running rows. More serves the newcomer
            sooner, less keeps the running ones smooth.
        prefix_cache_tokens: positions kept of prompt beginnings; 0 keeps none.
        default_output_tokens: output limit of requests that state none.
        max_adapters: adapters that may be loaded at once.
        lean: use the lean forward where it gives what the model's own gives; False always uses the model's own.
        graphs: on CUDA, replay decode steps as CUDA graphs where that gives what the steps give without.
    """

    quantization: Literal["nf4", "int8", "none"] = "nf4"
    smallest_quantized_mib: int = 64
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    threads: int = 0
    max_rows: int = 64
    max_waiting: int = 1024
    context_length: int = 0
    token_budget: int = 0
    prefill_tokens: int = 1024
    prefix_cache_tokens: int = 65536
    default_output_tokens: int = 512
    max_adapters: int = 64
    lean: bool = True
    graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("max_rows", "max_waiting", "prefill_tokens", "default_output_tokens", "max_adapters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("smallest_quantized_mib", "threads", "context_length", "token_budget", "prefix_cache_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, but is {getattr(self, name)}")


def check_request(request: GenerationRequest, vocabulary_size: int) -> None:
    """Check everything about a request that needs no tokenizer.

    Raises:
        InvalidArgument: with one violation per wrong field.
    """
    wrong = [
        FieldViolation(f"sampling.{name}", text) for name, text in _sampling_faults(request.sampling, vocabulary_size)
    ]
    if not request.request_id:
        wrong.append(FieldViolation("request_id", "must not be empty"))
    if sum([bool(request.messages), request.text is not None, bool(request.token_ids)]) != 1:
        wrong.append(
            FieldViolation("messages", "give exactly one of messages, text and token_ids, and not an empty one")
        )
    if any(not 0 <= token < vocabulary_size for token in request.token_ids):
        wrong.append(FieldViolation("token_ids", f"must be from 0 to {vocabulary_size - 1}"))
    if request.max_prompt_tokens is not None and request.max_prompt_tokens < 1:
        wrong.append(FieldViolation("max_prompt_tokens", f"must be at least 1, not {request.max_prompt_tokens}"))
    if request.flush_tokens is not None and request.flush_tokens < 1:
        wrong.append(FieldViolation("flush_tokens", f"must be at least 1, not {request.flush_tokens}"))
    if request.flush_interval is not None and not 0 <= request.flush_interval <= 60:
        wrong.append(FieldViolation("flush_interval", f"must be from 0 to 60 seconds, not {request.flush_interval}"))
    if request.constraint is not None:
        wrong += [FieldViolation("constraint", text) for text in _constraint_faults(request.constraint)]
    if wrong:
        raise InvalidArgument("; ".join(f"{w.field}: {w.description}" for w in wrong), violations=wrong)


def _sampling_faults(s: Sampling, vocabulary_size: int) -> list[tuple[str, str]]:
    faults = []
    ranges = (
        ("temperature", s.temperature, 0.0, 100.0),
        ("min_p", s.min_p, 0.0, 1.0),
        ("presence_penalty", s.presence_penalty, -2.0, 2.0),
        ("frequency_penalty", s.frequency_penalty, -2.0, 2.0),
        ("repetition_penalty", s.repetition_penalty, 0.01, 100.0),
    )
    for name, value, low, high in ranges:
        if not (math.isfinite(value) and low <= value <= high):
            faults.append((name, f"must be from {low:g} to {high:g}, not {value}"))
    if not (math.isfinite(s.top_p) and 0 < s.top_p <= 1):
        faults.append(("top_p", f"must be above 0 and at most 1, not {s.top_p}"))
    if s.top_k < 0:
        faults.append(("top_k", f"must be 0 (all) or more, not {s.top_k}"))
    if s.max_output_tokens is not None and s.max_output_tokens < 1:
        faults.append(("max_output_tokens", f"must be at least 1, not {s.max_output_tokens}"))
    if s.min_output_tokens < 0:
        faults.append(("min_output_tokens", f"must not be negative, but is {s.min_output_tokens}"))
    elif s.max_output_tokens is not None and s.min_output_tokens > s.max_output_tokens:
        faults.append(("min_output_tokens", f"{s.min_output_tokens} is more than max_output_tokens"))
    if s.seed is not None and not -(2**63) <= s.seed < 2**63:
        faults.append(("seed", "must fit 64 bits"))
    if s.logprobs is not None and not 0 <= s.logprobs <= MAX_LOGPROBS:
        faults.append(("logprobs", f"must be from 0 to {MAX_LOGPROBS}, not {s.logprobs}"))
    if len(s.stop_sequences) > MAX_STOP_SEQUENCES:
        faults.append(
            ("stop_sequences", f"{len(s.stop_sequences)} are given, at most {MAX_STOP_SEQUENCES} are allowed")
        )
    elif any(not 0 < len(stop) <= MAX_STOP_LENGTH for stop in s.stop_sequences):
        faults.append(("stop_sequences", f"each must have from 1 to {MAX_STOP_LENGTH} characters"))
    if len(s.stop_token_ids) > MAX_STOP_SEQUENCES:
        faults.append(
            ("stop_token_ids", f"{len(s.stop_token_ids)} are given, at most {MAX_STOP_SEQUENCES} are allowed")
        )
    elif any(not 0 <= token < vocabulary_size for token in s.stop_token_ids):
        faults.append(("stop_token_ids", f"must be from 0 to {vocabulary_size - 1}"))
    return faults


def _constraint_faults(constraint: Constraint) -> list[str]:
    size = len(constraint.value) + sum(map(len, constraint.choices))
    if size > MAX_CONSTRAINT_LENGTH:
        return [f"has {size} characters, at most {MAX_CONSTRAINT_LENGTH} are allowed"]
    if constraint.kind is ConstraintKind.CHOICES:
        if not constraint.choices or any(not choice for choice in constraint.choices):
            return ["choices: give at least one, none empty"]
        return []
    if not constraint.value:
        return [f"{constraint.kind.value}: is empty"]
    if constraint.kind is ConstraintKind.JSON_SCHEMA:
        try:
            schema = json.loads(constraint.value)
        except ValueError as error:
            return [f"json_schema: is no JSON: {error}"]
        if not isinstance(schema, dict | bool):
            return ["json_schema: must be a JSON object"]
    return []
