"""Client channels: default deadlines, request ids, tokens, and the servers' errors as the classes they were raised as.

A channel of ours is gRPC's with every call wrapped: one class per arity. gRPC's client interceptors could do the same,
but put a task and two generators between the caller and every message, and leave a call that is abandoned in the middle
of a stream running (grpc#43462); the wrapper cancels it when the caller lets go of it.

Deadlines are set per call, never by service config, whose timeouts fire a second early and stay unknown to the server.
The service config retries UNAVAILABLE up to three times in all, with 0.1 to 1 s between; gRPC does so only as long as
the first message of the answer has not arrived, so a stream is never repeated half-way. Creates are safe to retry
because they carry a `request_id`.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from chatmill.config import Config, Mesh
from chatmill.runtime import calls, endpoint, status
from chatmill.runtime.identity import REQUEST_ID, REQUEST_ID_KEY, new_request_id
from chatmill.runtime.security import WatchedFiles, channel_credentials, read_client_token, security_files

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": list(status.RETRYABLE),
                },
            }
        ],
    }
)


def connect(
    target: str,
    config: Config | None = None,
    *,
    default_timeout: float | None = None,
    stream_timeout: float | None = None,
) -> Channel:
    """A channel to `target` (`host:port`); nothing is dialled before the first call.

    Args:
        target: address of the service.
        config: security, limits and keepalive; defaults without it.
        default_timeout: seconds for unary calls that give none; `mesh.unary_timeout_seconds` without it, 0 for none.
        stream_timeout: the same for calls that stream either way; `mesh.stream_timeout_seconds` without it.

    Every call takes gRPC's own arguments; `timeout=math.inf` asks for no deadline. Calls raise `ChatmillError`s.

    Raises:
        InvalidArgument: reason `INVALID_CONFIG`, if a certificate or token file can't be read.
    """
    mesh = (config or Config()).mesh
    token_file = mesh.security.client_token_file
    policy = _Policy(
        target,
        mesh.unary_timeout_seconds if default_timeout is None else default_timeout,
        mesh.stream_timeout_seconds if stream_timeout is None else stream_timeout,
        WatchedFiles((token_file,), lambda: read_client_token(token_file)) if token_file else None,
    )
    return Channel(policy, mesh)


def connect_service(service: str, config: Config) -> Channel:
    """A channel to a service of the mesh by its section name, for example `factory`.

    Raises:
        Unavailable: reason `SERVICE_NOT_FOUND`, if it is on a port that the system chose and is not running here.
    """
    return connect(endpoint.resolve(config, service), config)


def channel_options(mesh: Mesh) -> list[tuple[str, Any]]:
    """gRPC's arguments for limits, keepalive and retries."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_send_message_length", mesh.max_message_bytes),
        ("grpc.max_receive_message_length", mesh.max_message_bytes),
        ("grpc.keepalive_time_ms", int(mesh.keepalive.ping_seconds * 1000)),
        ("grpc.keepalive_timeout_ms", int(mesh.keepalive.timeout_seconds * 1000)),
        ("grpc.keepalive_permit_without_calls", 0),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config", SERVICE_CONFIG),
    ]
    if mesh.security.server_name:
        options.append(("grpc.ssl_target_name_override", mesh.security.server_name))
    return options


@dataclass(frozen=True, slots=True)
class _Policy:
    """What is added to every call."""

    target: str
    unary_timeout: float
    stream_timeout: float
    token: WatchedFiles[str] | None

    def timeout(self, given: float | None, *, streams: bool) -> float | None:
        if given is None:
            return (self.stream_timeout if streams else self.unary_timeout) or None
        return None if math.isinf(given) else given

    def metadata(self, given: Iterable[tuple[str, Any]] | None) -> list[tuple[str, Any]]:
        metadata = list(given or ())
        names = {name for name, _ in metadata}
        if REQUEST_ID_KEY not in names:
            metadata.append((REQUEST_ID_KEY, REQUEST_ID.get() or new_request_id()))
        if self.token is not None and "authorization" not in names:
            metadata.append(("authorization", f"Bearer {self.token.get()[0]}"))
        return metadata


class _Callable:
    """A method of a stub: makes gRPC's call with deadline and metadata, and wraps it.

    Args:
        make: gRPC's multi-callable of the method, on whichever connection the channel uses now.
        method: its full name.
        policy: what is added to the call.
        wrap: class of the call.
    """

    def __init__(self, make: Callable[[], Any], method: str, policy: _Policy, wrap: type[Any]) -> None:
        self._make = make
        self._method = method
        self._policy = policy
        self._wrap = wrap
        self._takes_stream = issubclass(wrap, grpc.aio.StreamUnaryCall | grpc.aio.StreamStreamCall)
        self._streams = wrap is not calls.UnaryUnary

    def __call__(
        self,
        request: Any = None,
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, Any]] | None = None,
        credentials: grpc.CallCredentials | None = None,
        wait_for_ready: bool | None = None,
        compression: grpc.Compression | None = None,
    ) -> Any:
        sent = self._policy.metadata(metadata)
        outbox = (calls.Outbox(),) if self._takes_stream and request is None else ()
        call = self._make()(
            outbox[0] if outbox else request,
            timeout=self._policy.timeout(timeout, streams=self._streams),
            metadata=tuple(sent),
            credentials=credentials,
            wait_for_ready=wait_for_ready,
            compression=compression,
        )
        return self._wrap(call, calls.Origin(self._policy.target, self._method, dict(sent)[REQUEST_ID_KEY]), *outbox)


class Channel(grpc.aio.Channel):
    """gRPC's channel with every call wrapped; made by `connect`, used like any `grpc.aio.Channel`.

    gRPC's client never reads certificates again (grpc#41779), so this channel looks at the files before each call and
    opens a new connection when they have changed; calls under way finish on the old one.
    """

    def __init__(self, policy: _Policy, mesh: Mesh) -> None:
        self._policy = policy
        self._options = channel_options(mesh)
        files = security_files(mesh.security)
        self._credentials = WatchedFiles(files, lambda: channel_credentials(mesh.security))
        self._inner = self._dial()
        self._replaced: set[asyncio.Task[None]] = set()

    @property
    def target(self) -> str:
        """The address that it dials."""
        return self._policy.target

    def _dial(self) -> grpc.aio.Channel:
        credentials, _ = self._credentials.get()
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=self._options)
        return grpc.aio.secure_channel(self.target, credentials, options=self._options)

    def _current(self) -> grpc.aio.Channel:
        _, changed = self._credentials.get()
        if changed:
            closing = asyncio.create_task(self._inner.close(self._policy.stream_timeout or None))
            self._replaced.add(closing)
            closing.add_done_callback(self._replaced.discard)
            self._inner = self._dial()
        return self._inner

    def _method(self, arity: str, wrap: type[Any], method: str, args: tuple[Any, ...], more: dict[str, Any]) -> Any:
        made: list[Any] = [None, None]  # the channel, and its multi-callable

        def make() -> Any:
            inner = self._current()
            if made[0] is not inner:
                made[:] = inner, getattr(inner, arity)(method, *args, **more)
            return made[1]

        return _Callable(make, method, self._policy, wrap)

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method that takes one message and answers one."""
        return self._method("unary_unary", calls.UnaryUnary, method, args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method that takes one message and answers a stream."""
        return self._method("unary_stream", calls.UnaryStream, method, args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method that takes a stream and answers one message."""
        return self._method("stream_unary", calls.StreamUnary, method, args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A method that takes a stream and answers one."""
        return self._method("stream_stream", calls.StreamStream, method, args, kwargs)

    async def close(self, grace: float | None = None) -> None:
        """Close the connection; calls under way get `grace` seconds."""
        for closing in self._replaced:
            closing.cancel()
        await self._inner.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """State of the connection."""
        return self._current().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Return when the state is another than `last_observed_state`."""
        await self._current().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Return when the connection stands."""
        await self._current().channel_ready()

    async def __aenter__(self) -> Channel:
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self.close()
