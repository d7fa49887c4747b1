"""Sends requests to an access point with the official client, and turns its stream into our events.

This is how the mesh outgrows one machine: behind the access point vLLM or SGLang do what they do well. A request is
sent again only before its first token, since afterwards the customer has read it.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import httpx2 as httpx
import openai

from chatmill.errors import (
    Aborted,
    ChatmillError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from inference_svc.engines.base import (
    ENGINES,
    AdapterSpec,
    BaseInfo,
    BaseSpec,
    EngineLoad,
    Generation,
)
from inference_svc.engines.openai.parameters import UpstreamParameters, arguments
from inference_svc.generation import (
    AdapterKey,
    Delta,
    Finished,
    FinishReason,
    GenerationRequest,
    Message,
    Started,
    Timing,
    TokenLogprob,
    Tool,
    TopLogprob,
    Usage,
)
from inference_svc.toolcalls import CLOSE, OPEN

_FINISH = {
    "stop": FinishReason.END_OF_TURN,
    "tool_calls": FinishReason.END_OF_TURN,
    "function_call": FinishReason.END_OF_TURN,
    "length": FinishReason.MAX_TOKENS,
    "content_filter": FinishReason.CONTENT_BLOCKED,
}
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 5.0


@dataclass(slots=True)
class _Stream:
    """One stream as it is read: what gathered, the tool calls in pieces, and the times."""

    request: GenerationRequest
    generation: Generation
    begun: float
    first: float = 0.0
    last: float = 0.0
    longest: float = 0.0
    chunks: int = 0
    finish: str = ""
    usage: Any = None
    calls: dict[int, list[str]] = field(default_factory=dict)


@ENGINES.register("openai")
class UpstreamEngine:
    """One model at one access point; see `Engine`."""

    Parameters: ClassVar[type[Any]] = UpstreamParameters

    def __init__(self, parameters: UpstreamParameters) -> None:
        self._parameters = parameters
        self._client: openai.AsyncOpenAI | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._draining = False
        self._finished: Counter[str] = Counter()
        self._tokens = [0, 0]

    async def load_base(self, spec: BaseSpec) -> BaseInfo:
        """Make the client; nothing is sent before the first request."""
        p = self._parameters
        key = await asyncio.to_thread(self._key)
        self._client = openai.AsyncOpenAI(
            base_url=p.base_url,
            api_key=key or "none",
            max_retries=0,
            timeout=httpx.Timeout(p.silence_seconds, connect=p.connect_seconds),
        )
        return BaseInfo(context_length=p.context_length, vocabulary_size=0, device="remote")

    async def load_adapter(self, spec: AdapterSpec) -> None:
        """Access points take no adapters from here."""
        raise FailedPrecondition(
            f"{spec.key.name} is an adapter on an access point, which can't be given one. Register the adapter there "
            "and enter it as a remote model.",
            reason="ADAPTER_ON_REMOTE",
        )

    async def unload_adapter(self, key: AdapterKey) -> None:
        """There are none."""
        raise NotFound(f"{key} is not loaded.")

    async def submit(self, request: GenerationRequest) -> Generation:
        """Send a request; see `Engine`."""
        if self._client is None or self._draining:
            raise Unavailable("The access point's engine takes no requests now.", reason="DRAINING")
        said = arguments(request, self._parameters.model)
        generation = Generation(request.request_id, self.cancel)
        stream = _Stream(request, generation, time.monotonic())
        task = self._tasks[request.request_id] = asyncio.create_task(self._run(stream, said))
        task.add_done_callback(lambda _: self._over(stream))
        return generation

    def cancel(self, request_id: str) -> bool:
        """Close the stream, which tells the access point to stop."""
        task = self._tasks.get(request_id)
        return task is not None and task.cancel()

    async def count_tokens(self, messages: tuple[Message, ...], tools: tuple[Tool, ...] = ()) -> int:
        """Ask vLLM's `/tokenize`; other access points have nothing of the kind.

        Raises:
            FailedPrecondition: the access point can't count.
        """
        assert self._client is not None
        body = {
            "model": self._parameters.model,
            "messages": arguments(GenerationRequest("", messages=messages), "")["messages"],
        }
        root = self._parameters.base_url.rstrip("/").removesuffix("/v1")
        try:
            answer = await self._client.post(f"{root}/tokenize", cast_to=httpx.Response, body=body)
            return int(answer.json()["count"])
        except (openai.APIError, ValueError, KeyError, TypeError) as error:
            raise FailedPrecondition(
                f"The access point {self._parameters.base_url} can't count tokens: {error}", reason="COUNT_UNSUPPORTED"
            ) from error

    def load(self) -> EngineLoad:
        """Figures of the moment."""
        return EngineLoad(
            running=len(self._tasks),
            max_rows=self._parameters.concurrency,
            prompt_tokens_total=self._tokens[0],
            output_tokens_total=self._tokens[1],
            finished_total=dict(self._finished),
            draining=self._draining,
        )

    async def drain(self, grace: float) -> None:
        """See `Engine`."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks.values(), timeout=grace)
        for task in list(self._tasks.values()):
            task.cancel("drained")

    async def close(self) -> None:
        """See `Engine`."""
        await self.drain(0)
        if self._client is not None:
            await self._client.close()

    def _key(self) -> str:
        path = self._parameters.key_file
        if not path:
            return ""
        try:
            key = Path(path).read_text(encoding="ascii").strip()
        except OSError as error:
            raise FailedPrecondition(
                f"The key file {path} can't be read: {error.strerror}. Set inference.remote_key_file.",
                reason="KEY_UNREADABLE",
            ) from error
        except UnicodeDecodeError:
            key = ""
        if not key or not key.isprintable():
            raise FailedPrecondition(
                f"The key file {path} must hold one line of ASCII characters, the key.", reason="KEY_UNREADABLE"
            )
        return key

    async def _run(self, stream: _Stream, said: dict[str, Any]) -> None:
        """Read one stream to its end. Every way out ends the generation."""
        try:
            if stream.request.deadline is None:
                await self._attempts(stream, said)
            else:
                async with asyncio.timeout(max(0.0, stream.request.deadline - time.monotonic())):
                    await self._attempts(stream, said)
        except asyncio.CancelledError:
            self._end(stream, FinishReason.ENGINE_ABORTED if self._draining else FinishReason.CANCELLED)
            raise
        except TimeoutError:
            self._end(stream, FinishReason.TIME_LIMIT)
        except ChatmillError as error:
            self._finished["error"] += 1
            stream.generation.fail(error)
        except Exception as error:
            # A defect here must not leave the customer waiting for ever.
            self._finished["error"] += 1
            stream.generation.fail(error)
            raise
        finally:
            self._tasks.pop(stream.request.request_id, None)

    def _over(self, stream: _Stream) -> None:
        """A task that is cancelled before its first step never gets to say so itself."""
        self._tasks.pop(stream.request.request_id, None)
        if not stream.generation.ended:
            self._end(stream, FinishReason.ENGINE_ABORTED if self._draining else FinishReason.CANCELLED)

    async def _attempts(self, stream: _Stream, said: dict[str, Any]) -> None:
        for attempt in range(self._parameters.retries + 1):
            try:
                await self._read(stream, said)
            except (openai.APIError, httpx.HTTPError) as error:
                if stream.chunks:
                    raise Aborted(
                        f"The access point {self._parameters.base_url} broke off: {error}. Send the request again.",
                        reason="ENGINE_FAILED",
                    ) from error
                if attempt == self._parameters.retries or not _may_retry(error):
                    raise self._translated(error) from error
                await asyncio.sleep(_pause(error, attempt))
            else:
                return

    async def _read(self, stream: _Stream, said: dict[str, Any]) -> None:
        assert self._client is not None
        answer = await self._client.chat.completions.create(**said)
        async with answer:
            async for chunk in answer:
                if chunk.usage is not None:
                    stream.usage = chunk.usage
                for choice in chunk.choices[:1]:
                    self._take(stream, choice)
        if not stream.finish:
            # A connection that closes in the middle looks like the end of a stream, but no reason was given for one.
            raise openai.APIConnectionError(
                message="the stream ended without a finish reason", request=answer.response.request
            )
        if stream.calls:
            stream.generation.deliver(Delta("".join(map(_written, stream.calls.values()))))
        self._end(stream, _FINISH.get(stream.finish, FinishReason.END_OF_TURN))

    def _take(self, stream: _Stream, choice: Any) -> None:
        now = time.monotonic()
        if choice.finish_reason:
            stream.finish = choice.finish_reason
        for call in choice.delta.tool_calls or ():
            pieces = stream.calls.setdefault(call.index, ["", ""])
            pieces[0] += call.function.name or ""
            pieces[1] += call.function.arguments or ""
        text = choice.delta.content or ""
        if not text and not choice.delta.tool_calls:
            return
        if not stream.chunks:
            stream.first = now
            stream.generation.deliver(Started(0, queue_us=0, seed=stream.request.sampling.seed or 0))
        else:
            stream.longest = max(stream.longest, now - stream.last)
        stream.chunks += 1
        stream.last = now
        if text:
            stream.generation.deliver(Delta(text, (), _logprobs(choice)))

    def _end(self, stream: _Stream, reason: FinishReason) -> None:
        usage = stream.usage
        details = getattr(usage, "prompt_tokens_details", None)
        spent = Usage(
            getattr(usage, "prompt_tokens", 0) or 0,
            getattr(details, "cached_tokens", 0) or 0,
            # Without usage the chunks are counted; access points send one per token or so.
            getattr(usage, "completion_tokens", None) or stream.chunks,
        )
        self._tokens[0] += spent.prompt_tokens
        self._tokens[1] += spent.output_tokens
        self._finished[reason.value] += 1
        if not stream.chunks:
            stream.first = stream.last = time.monotonic()
            stream.generation.deliver(Started(spent.prompt_tokens, seed=stream.request.sampling.seed or 0))
        decode = stream.last - stream.first
        timing = Timing(
            prefill_us=_us(stream.first - stream.begun),
            time_to_first_token_us=_us(stream.first - stream.begun),
            decode_us=_us(decode),
            total_us=_us(time.monotonic() - stream.begun),
            inter_token_mean_us=_us(decode / (stream.chunks - 1)) if stream.chunks > 1 else 0,
            inter_token_max_us=_us(stream.longest),
        )
        stream.generation.deliver(Finished(reason, usage=spent, timing=timing, seed=stream.request.sampling.seed or 0))

    def _translated(self, error: openai.APIError | httpx.HTTPError) -> ChatmillError:
        where = f"The access point {self._parameters.base_url}"
        if not isinstance(error, openai.APIStatusError):
            why = str(error).rstrip(".")
            return Unavailable(f"{where} can't be reached: {why}.", reason="UPSTREAM_UNREACHABLE", retry_after=1.0)
        status, text = error.status_code, str(error.message)[:500]
        if status == 429:
            return ResourceExhausted(
                f"{where} refuses more requests: {text}", reason="UPSTREAM_OVERLOADED", retry_after=_pause(error, 0)
            )
        if status in (400, 413, 422):
            return InvalidArgument.field("messages", f"{where} refuses the request: {text}")
        if status in (401, 403, 404):
            return FailedPrecondition(
                f"{where} answers {status}: {text}. Check the URL, the model's name {self._parameters.model!r} there, "
                "and inference.remote_key_file and remote_trusted_hosts.",
                reason="UPSTREAM_REFUSED",
            )
        return Unavailable(f"{where} answers {status}: {text}", reason="UPSTREAM_FAILED", retry_after=1.0)


def _may_retry(error: Exception) -> bool:
    if isinstance(error, openai.APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return True


def _pause(error: Exception, attempt: int) -> float:
    """Seconds to wait: what the access point says, else longer each time, with jitter so that not all come at once."""
    if isinstance(error, openai.APIStatusError):
        said = str(error.response.headers.get("retry-after", ""))
        if said.replace(".", "", 1).isdigit():
            return min(_LONGEST_PAUSE, float(said))
    return min(_LONGEST_PAUSE, _FIRST_PAUSE * 2.0**attempt) * random.uniform(0.5, 1.0)


def _written(call: list[str]) -> str:
    """A tool call as models write it into text, which is how the pipeline finds it."""
    name, arguments_text = call
    try:
        value = json.loads(arguments_text or "{}")
    except json.JSONDecodeError:
        value = arguments_text
    return f"{OPEN}{json.dumps({'name': name, 'arguments': value}, ensure_ascii=False)}{CLOSE}"


def _logprobs(choice: Any) -> tuple[TokenLogprob, ...]:
    content = choice.logprobs.content if choice.logprobs else None
    return tuple(
        TokenLogprob(-1, t.token, t.logprob, tuple(TopLogprob(-1, p.token, p.logprob) for p in t.top_logprobs or ()))
        for t in content or ()
    )


def _us(seconds: float) -> int:
    return int(seconds * 1e6)
