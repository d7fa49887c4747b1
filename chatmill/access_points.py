"""URLs of access points that speak the OpenAI protocol. They stand in registries, replies and logs, so they hold no
secret."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

MOST_CHARACTERS = 2000
_NAME = re.compile(r"[\w-]+(\.[\w-]+)*\.?")


def check_url(url: str) -> None:
    """Refuse a base URL that no request could be sent to, or that holds what belongs into a key file.

    Raises:
        ValueError: it is none; the message says why, without what may be a secret.
    """
    if len(url) > MOST_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise ValueError(
            f"must be a URL of at most {MOST_CHARACTERS} ASCII characters, without spaces, line breaks and backslashes"
        )
    if not url.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:  # whose words quote the URL
        host, port = None, 0
    if port == 0 or not (host and (_NAME.fullmatch(host) or ":" in host)):
        raise ValueError("has no host, or a port that is none; for example http://127.0.0.1:8000/v1")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError(
            "must hold no user, password, query or fragment, since it is shown to everybody. A key stands in a file: "
            "the one in inference.remote_key_file, or for an evaluation the target's api_key_file"
        )


def is_among(url: str, hosts: Iterable[str]) -> bool:
    """Whether a URL leads to one of `hosts`, each a name or an address, with `:port` for that port only."""
    parts = urlsplit(url)
    named = {host.lower() for host in hosts}
    return (parts.hostname or "") in named or parts.netloc.lower() in named
