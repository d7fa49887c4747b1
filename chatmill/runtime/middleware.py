"""The middlewares that need nothing but the call: request ids, errors, and the gate that closes while stopping."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc.aio

from chatmill.errors import Cancelled, ChatmillError, Internal, Unavailable
from chatmill.runtime import status
from chatmill.runtime.identity import HEALTH, REQUEST_ID, REQUEST_ID_KEY, new_request_id
from chatmill.runtime.interceptor import Call

log = logging.getLogger(__name__)

_PRINTABLE = re.compile(r"[\x21-\x7e]{1,128}")

GONE_SECONDS = 1.0
"""How long after a failed send gRPC may take to cancel the call of a client that has gone."""


def request_id(call: Call) -> None:
    """Take the client's `x-request-id` (at most 128 printable ASCII characters) or make one; the trailers return it."""
    given = call.metadata.get(REQUEST_ID_KEY, "")
    call.request_id = given if _PRINTABLE.fullmatch(given) else new_request_id()
    REQUEST_ID.set(call.request_id)
    call.context.set_trailing_metadata(((REQUEST_ID_KEY, call.request_id),))


@asynccontextmanager
async def errors(call: Call) -> AsyncIterator[None]:
    """Turn what the handler raises into a rich status; a defect becomes INTERNAL with an id that the log explains."""
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except ChatmillError as error:
        call.error = f"{error.reason}: {error.message}"
        await status.abort(call.context, error)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # something that the handler awaited was cancelled, not the call; raising on would leave the client waiting
        call.error = "the work behind the call was cancelled"
        await status.abort(call.context, Cancelled(f"{call.method}: the work behind this call was cancelled."))
    except Exception as error:
        if isinstance(error, grpc.aio.InternalError):
            # A send to a client that has just gone may fail before gRPC cancels the call; that is no defect.
            await asyncio.sleep(GONE_SECONDS)
        opaque = uuid.uuid4().hex[:12]
        call.error = f"defect {opaque}: {type(error).__name__}"
        log.exception("defect %s in %s", opaque, call.method)
        await status.abort(
            call.context,
            Internal(
                f"{call.method} failed unexpectedly. The server's log explains it under {opaque}.",
                metadata={"defect": opaque},
            ),
        )


class Gate:
    """Counts calls under way and, once closed, refuses new ones; health checks always pass and never count.

    Args:
        service: name for the message.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._closed = False
        self._active = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        """Calls under way."""
        return self._active

    def close(self) -> None:
        """From now on new calls get UNAVAILABLE with RetryInfo."""
        self._closed = True

    async def idle(self) -> None:
        """Return when no call is under way."""
        await self._idle.wait()

    @contextmanager
    def __call__(self, call: Call) -> Iterator[None]:
        """The middleware: count the call, or raise Unavailable, reason `SHUTTING_DOWN`."""
        if call.service == HEALTH:
            yield
            return
        if self._closed:
            raise Unavailable(
                f"{self._service} is shutting down; try again when it is back.", reason="SHUTTING_DOWN", retry_after=1.0
            )
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()
