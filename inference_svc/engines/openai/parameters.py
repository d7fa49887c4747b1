"""Settings of the upstream engine, and how a request is said in the OpenAI protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from chatmill import access_points
from chatmill.errors import FieldViolation, InvalidArgument
from inference_svc.generation import ConstraintKind, GenerationRequest, Message, Overflow, Sampling, Tool


@dataclass(frozen=True)
class UpstreamParameters:
    """Where the access point is and how to treat it.

    Attributes:
        base_url: for example `http://127.0.0.1:8000/v1`.
        model: name of the model there.
        key_file: file with the API key; empty for none.
        concurrency: requests sent at once; others wait here, where they can be refused and fallen back from.
        context_length: tokens of context there; only for showing, the access point checks it itself.
        retries: times a request is sent again before its first token.
        connect_seconds: longest wait for a connection.
        silence_seconds: longest silence within a stream before it counts as dead.
    """

    base_url: str
    model: str
    key_file: str = ""
    concurrency: int = 64
    context_length: int = 32_768
    retries: int = 2
    connect_seconds: float = 5.0
    silence_seconds: float = 60.0

    def __post_init__(self) -> None:
        try:
            access_points.check_url(self.base_url)
        except ValueError as error:
            raise ValueError(f"base_url {error}") from error
        if not self.model:
            raise ValueError("model must name the model at the access point")
        if self.concurrency < 1 or self.retries < 0:
            raise ValueError("concurrency must be at least 1 and retries not negative")


def arguments(request: GenerationRequest, model: str) -> dict[str, Any]:
    """Arguments of `chat.completions.create`.

    What OpenAI's own protocol lacks (top-k, min-p, repetition penalty, minimum length) goes where vLLM, SGLang and
    llama.cpp look for it, and only if it is asked for, since others refuse fields they don't know.

    Raises:
        InvalidArgument: the request asks for what an access point can't do.
    """
    _refuse_unsupported(request)
    sampling, default = request.sampling, Sampling()
    said: dict[str, Any] = {
        "model": model,
        "messages": [_message(m) for m in request.messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    optional = {
        "max_tokens": sampling.max_output_tokens,
        "seed": sampling.seed,
        "stop": list(sampling.stop_sequences) or None,
        "presence_penalty": sampling.presence_penalty or None,
        "frequency_penalty": sampling.frequency_penalty or None,
        "tools": [_tool(t) for t in request.tools] or None,
        "response_format": _response_format(request),
    }
    said.update((k, v) for k, v in optional.items() if v is not None)
    if sampling.logprobs is not None:
        said.update(logprobs=True, top_logprobs=sampling.logprobs)
    extra = {
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "min_tokens": sampling.min_output_tokens,
        "ignore_eos": sampling.ignore_eos,
    }
    plain = {
        **{k: getattr(default, k) for k in ("top_k", "min_p", "repetition_penalty", "ignore_eos")},
        "min_tokens": 0,
    }
    changed = {k: v for k, v in extra.items() if v != plain[k]}
    if sampling.include_stop:
        changed["include_stop_str_in_output"] = True
    if changed:
        said["extra_body"] = changed
    return said


def _refuse_unsupported(request: GenerationRequest) -> None:
    wrong = []
    if not request.messages:
        wrong.append(FieldViolation("messages", "an access point takes messages only, no plain text or token ids"))
    if request.adapter is not None:
        wrong.append(FieldViolation("adapter", "an access point takes no adapter; register the adapter there"))
    if request.constraint is not None and request.constraint.kind is not ConstraintKind.JSON_SCHEMA:
        wrong.append(FieldViolation("constraint", "an access point takes a JSON schema only"))
    if request.overflow is Overflow.TRUNCATE_OLDEST:
        wrong.append(FieldViolation("overflow", "an access point can't be told to drop the oldest messages"))
    if wrong:
        raise InvalidArgument("; ".join(f"{w.field}: {w.description}" for w in wrong), violations=wrong)


def _message(message: Message) -> dict[str, Any]:
    said: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        said["tool_calls"] = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments}}
            for c in message.tool_calls
        ]
    if message.tool_call_id:
        said["tool_call_id"] = message.tool_call_id
    return said


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.json_schema)}
    return {"type": "function", "function": function}


def _response_format(request: GenerationRequest) -> dict[str, Any] | None:
    if request.constraint is None:
        return None
    try:
        schema = json.loads(request.constraint.value)
    except json.JSONDecodeError as error:
        raise InvalidArgument.field("constraint.json_schema", f"is not JSON: {error}") from None
    return {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
