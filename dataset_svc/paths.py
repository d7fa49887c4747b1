"""Which files a request may name: those under the roots that the operator allows, after all links are resolved."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from chatmill.errors import InvalidArgument, PermissionDenied


def resolve(path: str, roots: Sequence[Path], *, field: str) -> Path:
    """The file that `path` means, with links resolved.

    Whether it exists is not looked at before it is known to be allowed, so that nobody can probe the disk.

    Args:
        path: absolute, or relative to the folder in which the service runs.
        roots: the folders that are allowed.
        field: name of the request's field, for the error.

    Raises:
        InvalidArgument: the path is empty or impossible.
        PermissionDenied: reason `PATH_NOT_ALLOWED`; names the setting to change.
    """
    if not path.strip() or "\x00" in path:
        raise InvalidArgument.field(field, "must be the path of a file")
    try:
        resolved = Path(path).expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise InvalidArgument.field(field, f"{path!r} is not a usable path ({error})") from None
    allowed = [root.expanduser().resolve() for root in roots]
    if not any(resolved.is_relative_to(root) for root in allowed):
        shown = ", ".join(map(str, allowed)) or "none"
        raise PermissionDenied(
            f"{path} lies outside the folders that the dataset service may read ({shown}). Move the file there, or add "
            "its folder to dataset.roots in chatmill.yaml (or CHATMILL_DATASET__ROOTS) and restart the service.",
            reason="PATH_NOT_ALLOWED",
            metadata={"setting": "dataset.roots"},
        )
    try:
        resolved.exists()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InvalidArgument.field(field, "is longer than the path of a file can be") from None
    return resolved
