"""Structured logs and metrics: one line and one observation per call.

Logs go to standard error through `logging`, as text for people or one JSON object per line; `fields=` of `extra` become
their own keys, and the request id of the call that is being served is added to every record. Metrics are those of
`prometheus_client`'s default registry, so a core adds its own by just defining them; the page is off by default.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache

import grpc.aio
import prometheus_client

from chatmill.config import Mesh
from chatmill.runtime import status
from chatmill.runtime.identity import HEALTH, REQUEST_ID
from chatmill.runtime.interceptor import Call

log = logging.getLogger("chatmill.rpc")

RPC_SECONDS = prometheus_client.Histogram(
    "chatmill_rpc_seconds",
    "Time from the first byte of a call to its status, by method and code.",
    ["method", "code"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)
RPC_ACTIVE = prometheus_client.Gauge("chatmill_rpc_active", "Calls under way, by method.", ["method"])
RPC_SENT = prometheus_client.Counter(
    "chatmill_rpc_messages_sent", "Messages written to streams, by method.", ["method"]
)
# By their labels, which prometheus_client takes longer to look up than to count; so these are never cleared.
_seconds, _active, _sent = cache(RPC_SECONDS.labels), cache(RPC_ACTIVE.labels), cache(RPC_SENT.labels)

_QUIET = (HEALTH, "grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection")

_JSON = json.JSONEncoder(ensure_ascii=False, default=str)


class _Formatter(logging.Formatter):
    def __init__(self, service: str, *, as_json: bool) -> None:
        super().__init__()
        self._service = service
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """One record: a JSON object, or `time LEVEL service message key=value ...`."""
        fields: dict[str, object] = dict(record.__dict__.get("fields", {}))
        if "request_id" not in fields and REQUEST_ID.get():
            fields["request_id"] = REQUEST_ID.get()
        moment = datetime.fromtimestamp(record.created, UTC)
        message = record.getMessage()
        stack = self.formatException(record.exc_info) if record.exc_info else ""
        if self._as_json:
            entry = {
                "time": moment.isoformat(timespec="milliseconds"),
                "level": record.levelname.lower(),
                "service": self._service,
                "logger": record.name,
                "message": message,
                **fields,
                **({"stack": stack} if stack else {}),
            }
            return _JSON.encode(entry)
        message = message.replace("\r", "\\r").replace("\n", "\\n")  # or a request could forge lines of the log
        pairs = "".join(f" {key}={_quoted(value)}" for key, value in fields.items() if value not in ("", None))
        line = f"{moment:%H:%M:%S}.{int(record.msecs):03d} {record.levelname:<7} {self._service:<9} {message}{pairs}"
        return f"{line}\n{stack}" if stack else line


def _quoted(value: object) -> str:
    text = f"{value:.1f}" if isinstance(value, float) else str(value)
    plain = text.isprintable() and not any(character in text for character in ' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def setup_logging(mesh: Mesh, service: str) -> None:
    """Send all logs of this process to standard error in the configured form; called once, by the process's main."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter(service, as_json=mesh.log_format == "json"))
    # a record is made for each call, and none of these three is ever written
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(mesh.log_level.upper())
    # libraries that tell their life story at INFO
    for name in ("httpx", "httpcore", "urllib3", "filelock", "matplotlib"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))


@contextmanager
def observe(call: Call) -> Iterator[None]:
    """Middleware: a log line and metrics when the call ends, however it ends. Health and reflection only at DEBUG."""
    started = time.perf_counter()
    code = "UNKNOWN"
    _active(call.method).inc()
    try:
        yield
        code = status.code_name(call.context)
    except grpc.aio.AbortError:
        code = status.code_name(call.context)
        raise
    except asyncio.CancelledError:
        code = "DEADLINE_EXCEEDED" if call.context.time_remaining() == 0 else "CANCELLED"
        raise
    finally:
        seconds = time.perf_counter() - started
        _active(call.method).dec()
        _seconds(call.method, code).observe(seconds)
        if call.sent:
            _sent(call.method).inc(call.sent)
        level = logging.DEBUG if call.service in _QUIET else logging.INFO
        if code in ("INTERNAL", "UNKNOWN"):
            level = logging.ERROR
        if log.isEnabledFor(level):
            fields = {
                "method": call.method,
                "code": code,
                "ms": round(seconds * 1000, 3),
                "request_id": call.request_id,
                "peer": call.context.peer(),
                "principal": call.principal,
                "sent": call.sent or None,
                "error": call.error,
            }
            log.log(level, "rpc", extra={"fields": {k: v for k, v in fields.items() if v not in ("", None)}})
