"""Every error that Chatmill raises on purpose, with no knowledge of gRPC, HTTP or torch.

Cores raise these classes; `chatmill.runtime.status` turns one into a rich gRPC status on the way out, and
`chatmill.runtime.channel` turns a status back into the same class in the client. The message says what is wrong,
where, and what to do about it, because it is what the person at the other end reads.

===================  ====================  ========================================================
class                gRPC code             raise it when
===================  ====================  ========================================================
InvalidArgument      INVALID_ARGUMENT      the request itself is wrong, whatever the state of the mesh
NotFound             NOT_FOUND             a named thing does not exist
AlreadyExists        ALREADY_EXISTS        a thing of that name exists and differs
FailedPrecondition   FAILED_PRECONDITION   the request is right, but the state of the mesh forbids it
ResourceExhausted    RESOURCE_EXHAUSTED    a queue, quota, disk or budget is full; says when to retry
Aborted              ABORTED               work that had begun was broken off and may be started again
Unavailable          UNAVAILABLE           the service is starting, draining or gone; safe to retry
DeadlineExceeded     DEADLINE_EXCEEDED     the caller's time ran out
Cancelled            CANCELLED             the caller or an operator cancelled the work
Unauthenticated      UNAUTHENTICATED       no identity, or one that can't be verified
PermissionDenied     PERMISSION_DENIED     the identity is known and may not do this
Internal             INTERNAL              a defect of ours; carries an opaque id that the log explains
===================  ====================  ========================================================

Anything else that escapes a core is a defect and becomes `Internal` at the door.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

DOMAIN = "chatmill.ai"
"""The `google.rpc.ErrorInfo.domain` of every error of ours (AIP-193)."""
MESSAGE_TOO_LARGE = "MESSAGE_TOO_LARGE"
"""Reason of a `ResourceExhausted` for one message above `mesh.max_message_bytes`, which no retry makes smaller."""


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field of a request.

    Attributes:
        field: path of the field as the contract spells it, for example `generation.temperature`.
        description: what is wrong with it and what would be right.
    """

    field: str
    description: str


class ChatmillError(Exception):
    """Base of all deliberate errors.

    Args:
        message: one or two sentences for a person: what, where, and the way out.
        reason: UPPER_SNAKE constant that a program can branch on; stable across releases (AIP-193).
        metadata: the dynamic parts of the message, for programs; never a secret.
    """

    code: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code."""
    default_reason: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, reason: str | None = None, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason or self.default_reason
        self.metadata: dict[str, str] = dict(metadata or {})


class InvalidArgument(ChatmillError):
    """The request is wrong; `violations` name the fields."""

    code = "INVALID_ARGUMENT"
    default_reason = "INVALID_ARGUMENT"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations)

    @classmethod
    def field(cls, field: str, description: str, *, reason: str | None = None) -> InvalidArgument:
        """The common case: one wrong field."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)], reason=reason)


class NotFound(ChatmillError):
    """A named thing does not exist."""

    code = "NOT_FOUND"
    default_reason = "NOT_FOUND"


class AlreadyExists(ChatmillError):
    """A thing of that name exists already and is not the same."""

    code = "ALREADY_EXISTS"
    default_reason = "ALREADY_EXISTS"


class FailedPrecondition(ChatmillError):
    """The request is right, but not in the present state; the message says which state it needs."""

    code = "FAILED_PRECONDITION"
    default_reason = "FAILED_PRECONDITION"


class ResourceExhausted(ChatmillError):
    """A bound was reached.

    Args:
        retry_after: seconds after which a retry has a chance, or None if only a change of the request helps.
        quota: name of the bound, for `google.rpc.QuotaFailure`.
    """

    code = "RESOURCE_EXHAUSTED"
    default_reason = "RESOURCE_EXHAUSTED"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        quota: str | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after = retry_after
        self.quota = quota


class Aborted(ChatmillError):
    """Work that had begun was broken off; starting it again is safe."""

    code = "ABORTED"
    default_reason = "ABORTED"


class Unavailable(ChatmillError):
    """The service can't answer now.

    Args:
        retry_after: seconds after which to try again, if known.
    """

    code = "UNAVAILABLE"
    default_reason = "UNAVAILABLE"

    def __init__(
        self,
        message: str,
        *,
        retry_after: float | None = None,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.retry_after = retry_after


class DeadlineExceeded(ChatmillError):
    """The caller's time ran out before the work was done."""

    code = "DEADLINE_EXCEEDED"
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(ChatmillError):
    """The caller or an operator cancelled the work."""

    code = "CANCELLED"
    default_reason = "CANCELLED"


class Unauthenticated(ChatmillError):
    """No identity was given, or it can't be verified."""

    code = "UNAUTHENTICATED"
    default_reason = "UNAUTHENTICATED"


class PermissionDenied(ChatmillError):
    """The caller is known and may not do this."""

    code = "PERMISSION_DENIED"
    default_reason = "PERMISSION_DENIED"


class Internal(ChatmillError):
    """A defect of ours; the message carries an opaque id that the server's log explains."""

    code = "INTERNAL"
    default_reason = "INTERNAL"


BY_CODE: dict[str, type[ChatmillError]] = {
    cls.code: cls
    for cls in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        ResourceExhausted,
        Aborted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unauthenticated,
        PermissionDenied,
        Internal,
    )
}
"""gRPC code name to class, for the way back from a status."""
