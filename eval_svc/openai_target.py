"""A server that speaks the OpenAI protocol as an agent under test, through the official client.

It knows no gRPC. The client's own retries are off: the runner counts and bounds them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
import regex

from chatmill import access_points
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from eval_svc.keys import Keys
from eval_svc.spec import TargetSpec
from eval_svc.target import MAX_REPLY_CHARS, TargetInfo, TurnRequest
from eval_svc.transcript import HANDOVER_TOOL, Failure, Reply, ToolCall

_CALL = regex.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", regex.DOTALL)
_GATEWAY = frozenset((404, 409, 502, 503, 504, 529))
"""HTTP statuses of an endpoint that is not there or not ready, as opposed to one that answers badly."""

HANDOVER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": HANDOVER_TOOL,
        "description": "Pass the customer to a person.",
        "parameters": {
            "type": "object",
            "properties": {"reason": {"type": "string", "description": "Why a person must take over."}},
            "required": ["reason"],
        },
    },
}


@dataclass(frozen=True, slots=True)
class OpenAiTarget:
    """A model behind `{base_url}/chat/completions`, streamed."""

    client: openai.AsyncOpenAI
    spec: TargetSpec

    @classmethod
    def open(cls, spec: TargetSpec, keys: Keys) -> OpenAiTarget:
        """A client for the server that a spec names.

        Raises:
            InvalidArgument: the URL is none, or holds a secret.
            FailedPrecondition, PermissionDenied, NotFound: the key file can't be used; see `Keys.read`.
        """
        try:
            access_points.check_url(spec.base_url)
        except ValueError as error:
            raise InvalidArgument.field("openai.base_url", str(error)) from error
        key = keys.read(spec.api_key_file, spec.base_url) if spec.api_key_file else "none"
        return cls(openai.AsyncOpenAI(base_url=spec.base_url, api_key=key, max_retries=0), spec)

    async def describe(self) -> TargetInfo:
        """Checks that the server answers; one that lists no models is taken at its word."""
        try:
            listed = [model.id async for model in self.client.models.list(timeout=10)]
        except openai.AuthenticationError as error:
            raise FailedPrecondition(f"{self.spec.base_url} refuses the key: {self._told(error)}") from None
        except openai.APIStatusError:
            listed = []
        except openai.APIConnectionError as error:
            raise Unavailable(f"{self.spec.base_url} can't be reached: {self._told(error)}") from None
        if listed and self.spec.model not in listed:
            raise NotFound(f"{self.spec.base_url} has no model {self.spec.model!r}; it has {', '.join(listed[:20])}")
        hosted = not any(host in self.spec.base_url for host in ("127.0.0.1", "localhost", "[::1]"))
        priced = self.spec.model if hosted else ""
        return TargetInfo(self.spec.display_name or self.spec.model, self.spec.model, "", "openai", priced)

    async def reply(self, request: TurnRequest) -> Reply:
        """One completion, with the times seen here."""
        reading = _Reading()
        try:
            async with asyncio.timeout(request.timeout_s):
                return reading.reply(await self._read(request, reading))
        except (TimeoutError, openai.APITimeoutError):
            detail = f"not complete within {request.timeout_s:.0f} s"
            return reading.reply(Failure("timeout", "DEADLINE_EXCEEDED", detail))
        except openai.APIStatusError as error:
            return reading.reply(_status_failure(error, self._told(error)))
        except openai.APIConnectionError as error:
            kind: Any = "stream_broken" if reading.first is not None else "unreachable"
            return reading.reply(Failure(kind, "UNAVAILABLE", self._told(error)))
        except openai.APIError as error:
            return reading.reply(Failure("stream_broken", "API_ERROR", self._told(error)))
        except (ValueError, OSError, AttributeError, TypeError, openai.OpenAIError) as error:
            # what an HTTP library or a server that speaks half the protocol throws in the middle of a stream
            return reading.reply(Failure("stream_broken", "BAD_STREAM", f"{type(error).__name__}: {self._told(error)}"))
        except Exception as error:
            if type(error).__module__.split(".")[0] not in ("httpx", "httpcore", "h11", "anyio"):
                raise
            return reading.reply(Failure("stream_broken", "BAD_STREAM", f"{type(error).__name__}: {self._told(error)}"))

    def _told(self, error: Exception) -> str:
        """What an error says, without the key: servers quote what they refuse, and HTTP libraries quote headers."""
        text = str(error.__cause__ or error) if isinstance(error, openai.APIConnectionError) else str(error)
        key = self.client.api_key
        return (text.replace(key, "***") if self.spec.api_key_file else text)[:500]

    async def _read(self, request: TurnRequest, reading: _Reading) -> Failure | None:
        messages: list[Any] = [{"role": "system", "content": request.prompt}] if request.prompt else []
        messages += [{"role": _role(m.role), "content": m.content} for m in request.messages]
        tools: Any = [HANDOVER] if request.agent else openai.omit
        stream = await self.client.chat.completions.create(
            model=self.spec.model,
            messages=messages,
            seed=request.seed,
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            tools=tools,
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for chunk in stream:
                reading.take(chunk)
                if len(reading.text) > MAX_REPLY_CHARS:
                    return Failure("oversized", "OK", f"cut at {MAX_REPLY_CHARS} characters")
        return None if reading.finish else Failure("stream_broken", "OK", "the stream ended without a finish reason")


def _role(role: str) -> str:
    # without the call that it answers, a tool message is refused by servers; its content still informs
    return "system" if role == "tool" else role


def _status_failure(error: openai.APIStatusError, detail: str) -> Failure:
    status = f"HTTP {error.status_code}"
    retry = error.response.headers.get("retry-after")
    after = float(retry) if retry and retry.replace(".", "", 1).isdigit() else None
    if error.status_code in (401, 403):
        return Failure("unauthenticated", status, detail)
    if error.status_code == 429:
        return Failure("rate_limited", status, detail, after)
    if error.status_code in _GATEWAY:
        return Failure("unreachable", status, detail, after)
    return Failure("stream_broken", status, detail)


@dataclass(slots=True)
class _Reading:
    """A reply as it comes in."""

    started_at: float = field(default_factory=time.time)
    began: float = field(default_factory=time.perf_counter)
    first: float | None = None
    parts: list[str] = field(default_factory=list)
    length: int = 0
    calls: dict[int, list[str]] = field(default_factory=dict)
    finish: str = ""
    tokens_in: int | None = None
    tokens_out: int | None = None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def take(self, chunk: Any) -> None:
        if chunk.usage is not None:
            self.tokens_in, self.tokens_out = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
        for choice in chunk.choices[:1]:
            delta = choice.delta
            if (delta.content or delta.tool_calls) and self.first is None:
                self.first = time.perf_counter()
            if delta.content:
                self.parts.append(delta.content)
            for part in delta.tool_calls or ():
                name_and_arguments = self.calls.setdefault(part.index, ["", ""])
                if part.function is not None:
                    name_and_arguments[0] += part.function.name or ""
                    name_and_arguments[1] += part.function.arguments or ""
            self.finish = choice.finish_reason or self.finish

    def reply(self, failure: Failure | None) -> Reply:
        text, written = split_calls(self.text)
        calls = [*(tool_call(name, arguments) for name, arguments in self.calls.values() if name), *written]
        handoff = next((str(c.arguments.get("reason", "")) for c in calls if c.name == HANDOVER_TOOL), None)
        return Reply(
            text=text[:MAX_REPLY_CHARS],
            tool_calls=tuple(calls),
            handoff_reason=handoff,
            finish_reason=self.finish,
            started_at=self.started_at,
            first_token_ms=None if self.first is None else (self.first - self.began) * 1000,
            total_ms=(time.perf_counter() - self.began) * 1000,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            failure=failure,
        )


def tool_call(name: str, arguments: str) -> ToolCall:
    """A call whose arguments came as text; what is no JSON object is kept as it is."""
    try:
        value = json.loads(arguments or "{}")
    except ValueError:
        value = {"unreadable": arguments}
    return ToolCall(name, value if isinstance(value, dict) else {"value": value})


def split_calls(text: str) -> tuple[str, list[ToolCall]]:
    """Take calls written as `<tool_call>{...}</tool_call>` out of a text; servers without a parser leave them there."""
    calls: list[ToolCall] = []

    def take(match: regex.Match[str]) -> str:
        try:
            value: Mapping[str, Any] = json.loads(match.group(1))
            calls.append(ToolCall(str(value["name"]), dict(value.get("arguments") or {})))
        except (ValueError, KeyError, TypeError):
            return match.group()
        return ""

    rest = _CALL.sub(take, text)
    return (rest.strip() if calls else text), calls
