"""Between `ChatmillError` and `google.rpc.Status`, both ways; the only module that names a gRPC status code.

A status travels in HTTP/2 trailers, and peers drop trailers above 8 KiB (Java and C by default). So what goes out is
bounded here: a longer message ends in "…", violations that do not fit are counted in the ErrorInfo's metadata under
`violations_omitted`. The server's log has all of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, NoReturn

import grpc.aio
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from chatmill.errors import (
    BY_CODE,
    DOMAIN,
    ChatmillError,
    FieldViolation,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)
from chatmill.runtime import Context

DETAILS_KEY = "grpc-status-details-bin"
MESSAGE_BYTES = 1400
"""Bound of the message as it travels, percent-encoded, in bytes."""
STATUS_BYTES = 3600
"""Bound of the serialised status with its details, in bytes, before base64."""
_METADATA_VALUE_CHARACTERS = 200

# codes that no class of ours has: an old server, a proxy, or a handler outside our interceptor
_FOREIGN = {"OUT_OF_RANGE": "INVALID_ARGUMENT", "UNIMPLEMENTED": "FAILED_PRECONDITION"}

RETRYABLE = (grpc.StatusCode.UNAVAILABLE.name,)
"""What a channel may retry by itself."""


def to_status(error: ChatmillError) -> status_pb2.Status:
    """The rich status of `error`: ErrorInfo always; BadRequest, RetryInfo, QuotaFailure where they apply."""
    message = _bounded(error.message, MESSAGE_BYTES)
    result = status_pb2.Status(code=grpc.StatusCode[error.code].value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for key, value in error.metadata.items():
        info.metadata[key] = _bounded(value, 3 * _METADATA_VALUE_CHARACTERS)
    later: list[Any] = []
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(max(0, math.ceil(retry_after * 1e9)))
        later.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, ResourceExhausted) and error.quota:
        violation = error_details_pb2.QuotaFailure.Violation(subject=error.quota, description=message[:200])
        later.append(error_details_pb2.QuotaFailure(violations=[violation]))
    if isinstance(error, InvalidArgument) and error.violations:
        used = result.ByteSize() + info.ByteSize() + 300
        request, omitted = _bad_request(error.violations, STATUS_BYTES - used)
        later.append(request)
        if omitted:
            info.metadata["violations_omitted"] = str(omitted)
    for detail in [info, *later]:
        result.details.add().Pack(detail)
    return result


def _bad_request(violations: Iterable[FieldViolation], budget: int) -> tuple[error_details_pb2.BadRequest, int]:
    """As many violations as fit into `budget` bytes, and how many did not."""
    request = error_details_pb2.BadRequest()
    omitted = 0
    for violation in violations:
        entry = error_details_pb2.BadRequest.FieldViolation(
            field=_clean(violation.field)[:200], description=_bounded(violation.description, 600)
        )
        if request.ByteSize() + entry.ByteSize() + 4 > budget:
            omitted += 1
        else:
            request.field_violations.append(entry)
    return request, omitted


def _clean(text: str) -> str:
    """`text` without what UTF-8 can't carry (lone surrogates from a request are quoted in messages)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _bounded(text: str, limit: int) -> str:
    """`text`, cut so that its percent-encoded form has at most `limit` bytes."""
    text = _clean(text)
    if 3 * len(text) <= limit and text.isascii():
        return text
    size = 0
    for index, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode("utf-8"))
        if size > limit:
            return text[: max(0, index - 9)] + "…"
    return text


async def abort(context: Context, error: ChatmillError) -> NoReturn:
    """End the call with the status of `error`, keeping trailing metadata that was set before.

    Raises:
        grpc.aio.AbortError: the status is sent; it must not be swallowed.
        asyncio.CancelledError: the client has gone.
        grpc.aio.InternalError: gRPC does not accept the status.
    """
    rich = rpc_status.to_status(to_status(error))
    kept = tuple(context.trailing_metadata() or ())
    try:
        await context.abort(rich.code, rich.details, (*kept, *rich.trailing_metadata))
    except grpc.aio.InternalError as failed:
        # A status that was accepted and did not leave has nobody to go to; gRPC itself cancels no call that has one.
        if not str(failed).startswith('Failed "execute_batch"'):
            raise
        raise asyncio.CancelledError("the client has gone") from failed
    raise AssertionError("abort returned")


def code_name(context: Context) -> str:
    """Name of the code that the call has so far; `OK` if nobody set one."""
    code = context.code()
    return code.name if isinstance(code, grpc.StatusCode) else "OK"


def from_status(status: status_pb2.Status) -> ChatmillError:
    """The error that `to_status` was given, as far as the status tells."""
    names = {code.value[0]: code.name for code in grpc.StatusCode}
    name = names.get(status.code, "UNKNOWN")
    cls = BY_CODE.get(_FOREIGN.get(name, name), Internal)
    found: dict[str, Any] = {"reason": None if name in BY_CODE else name, "metadata": {}}
    extra: dict[str, Any] = {}
    for detail in status.details:
        info, request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry, quota = error_details_pb2.RetryInfo(), error_details_pb2.QuotaFailure()
        if detail.Unpack(info):
            found = {"reason": info.reason or found["reason"], "metadata": dict(info.metadata)}
        elif detail.Unpack(request):
            extra["violations"] = [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif detail.Unpack(retry):
            extra["retry_after"] = retry.retry_delay.ToNanoseconds() / 1e9
        elif detail.Unpack(quota) and quota.violations:
            extra["quota"] = quota.violations[0].subject
    allowed: dict[type[ChatmillError], tuple[str, ...]] = {
        InvalidArgument: ("violations",),
        ResourceExhausted: ("retry_after", "quota"),
        Unavailable: ("retry_after",),
    }
    known = {key: value for key, value in extra.items() if key in allowed.get(cls, ())}
    return cls(status.message, **found, **known)


def from_rpc_error(error: grpc.aio.AioRpcError, *, target: str, method: str) -> ChatmillError:
    """The class that the server raised, or one that says what happened on the way.

    Args:
        error: as gRPC raised it in the client.
        target: address that was called, for the message.
        method: full method name, for the message.
    """
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY:
            status = status_pb2.Status()
            status.ParseFromString(value if isinstance(value, bytes) else value.encode("latin-1"))
            return from_status(status)
    code, details = error.code(), error.details() or ""
    text = {
        grpc.StatusCode.UNAVAILABLE: f"{target} can't be reached ({details}). Is the service running there? "
        "`chatmill up` starts the mesh; mesh.peers says where services are.",
        grpc.StatusCode.DEADLINE_EXCEEDED: f"{method} at {target} gave no answer in time ({details}).",
        grpc.StatusCode.UNIMPLEMENTED: f"{target} does not know {method}; it runs another version or another service.",
    }.get(code, f"{method} at {target}: {details or code.name}")
    return from_status(status_pb2.Status(code=code.value[0], message=text))
