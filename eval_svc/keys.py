"""Keys of access points: files in one folder that the operator chose for them, sent to hosts that the operator named.

A caller names both the file and the server that the key is sent to. Without these bounds callers could read whatever
they can name; and no error may tell what a file holds.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from chatmill import access_points
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied

MAX_BYTES = 4096
"""Larger files are no keys."""

FIELD = "openai.api_key_file"
_KEY = re.compile(rb"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Keys:
    """What may be a key, and who may be sent one.

    Attributes:
        root: the folder of key files.
        hosts: hosts that get keys, each a name or an address, with `:port` for that port only.
    """

    root: Path
    hosts: tuple[str, ...] = ()

    def read(self, name: str, url: str) -> str:
        """The key in the file `name`, a path or a name in the folder, for the access point at `url`.

        Raises:
            InvalidArgument: the path is impossible.
            FailedPrecondition: what lies there is no key.
            PermissionDenied: reason `PATH_NOT_ALLOWED`; the file lies outside the folder, links followed. Reason
                `HOST_NOT_TRUSTED`: nobody there gets a key.
            NotFound: there is no such file.
        """
        if not access_points.is_among(url, self.hosts):
            raise PermissionDenied(
                f"openai.base_url: no key is sent to {url}; add its host to eval.trusted_hosts in chatmill.yaml",
                reason="HOST_NOT_TRUSTED",
                metadata={"setting": "eval.trusted_hosts"},
            )
        return _read(name, self.root)


def _read(name: str, root: Path) -> str:
    # Whether a file exists is not looked at before it is known to be allowed, so that nobody can probe the disk.
    try:
        folder = root.resolve()
        real = next((p for p in (folder.joinpath(name).resolve(), Path(name).resolve()) if _within(p, folder)), None)
    except (OSError, RuntimeError, ValueError):
        raise InvalidArgument.field(FIELD, "is not a usable path") from None
    if real is None:
        raise PermissionDenied(
            f"{FIELD}: {name} is outside the folder of key files; put the key into a file of its own in {folder}, or "
            "name another folder with eval.key_root in chatmill.yaml",
            reason="PATH_NOT_ALLOWED",
            metadata={"setting": "eval.key_root"},
        )
    return _checked(_content(real), real)


def _within(path: Path, folder: Path) -> bool:
    return path != folder and path.is_relative_to(folder)


def _content(path: Path) -> bytes:
    try:
        # without O_NONBLOCK a pipe would hold this thread until somebody writes to it
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(file, "rb") as opened:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FailedPrecondition(f"the key file {path} is no regular file; put the key into one")
            return opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise NotFound(f"the key file {path} can't be read: {error.strerror}", reason="FILE_NOT_FOUND") from None


def _checked(content: bytes, path: Path) -> str:
    wanted = "it must hold one key alone, in printable ASCII without spaces"
    if len(content) > MAX_BYTES:
        raise FailedPrecondition(f"the key file {path} is larger than {MAX_BYTES} bytes; {wanted}")
    key = content.strip()
    if not key:
        raise FailedPrecondition(f"the key file {path} is empty; {wanted}")
    if not _KEY.fullmatch(key):
        raise FailedPrecondition(f"the key file {path} holds other characters; {wanted}")
    return key.decode("ascii")
