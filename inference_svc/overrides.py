"""What an operator changes while the service runs: blocked phrases, and models taken out of service.

Kept in one YAML file, `serving-overrides.yaml` under the home folder, so that it survives a restart and replicas that
share the folder agree. It is read again when it changes, so an editor works as well as the RPC. A file that is wrong
leaves the last good one in force, and says so.
"""

from __future__ import annotations

import asyncio
import logging
import os
from dataclasses import dataclass
from pathlib import Path

import yaml

from chatmill.errors import ChatmillError, InvalidArgument
from chatmill.plugins import parse_parameters
from inference_svc.moderation.words import WordTable

log = logging.getLogger(__name__)

FILE_NAME = "serving-overrides.yaml"


@dataclass(frozen=True)
class Overrides:
    """The operator's changes.

    Attributes:
        blocked_phrases: phrases that moderation treats like its word lists.
        forced_fallback: models (`models/{id}` or a version) that their chains answer for.
    """

    blocked_phrases: tuple[str, ...] = ()
    forced_fallback: tuple[str, ...] = ()


class OverridesFile:
    """The operator's changes as they are now.

    Args:
        path: the file; it need not exist.

    Attributes:
        version: counts up with each change.
        current: the changes in force.
    """

    def __init__(self, path: Path) -> None:
        self.version = 0
        self.current = Overrides()
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self.refresh()

    @property
    def phrases(self) -> tuple[str, ...]:
        """Blocked phrases; see `moderation.base.BlockedPhrases`."""
        return self.current.blocked_phrases

    def forced(self) -> tuple[str, ...]:
        """Models taken out of service."""
        return self.current.forced_fallback

    def refresh(self) -> bool:
        """Read the file if it changed; whether it did and was right."""
        try:
            stat = os.stat(self._path)
            stamp = (stat.st_mtime_ns, stat.st_size)
        except OSError:
            stamp = None
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            changed = self._read() if stamp is not None else Overrides()
        except (ChatmillError, yaml.YAMLError, OSError, UnicodeDecodeError) as error:
            log.error("%s can't be used, and what held before stays in force: %s", self._path, error)
            return False
        self._take(changed)
        return True

    def update(self, overrides: Overrides) -> None:
        """Write and apply new changes.

        Raises:
            InvalidArgument: a phrase can't be matched.
        """
        check(overrides)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        data = {
            "blocked_phrases": list(overrides.blocked_phrases),
            "forced_fallback": list(overrides.forced_fallback),
        }
        temporary.write_text(yaml.safe_dump(data, allow_unicode=True, sort_keys=False), encoding="utf-8")
        temporary.replace(self._path)
        stat = os.stat(self._path)
        self._stamp = (stat.st_mtime_ns, stat.st_size)
        self._take(overrides)

    async def follow(self, seconds: float = 1.0) -> None:
        """Look for changes every so many seconds until cancelled."""
        while True:
            await asyncio.sleep(seconds)
            self.refresh()

    def _read(self) -> Overrides:
        data = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
        if not isinstance(data, dict):
            raise InvalidArgument(f"{self._path}: must be a mapping of blocked_phrases and forced_fallback")
        overrides = parse_parameters(Overrides, data, field="")
        check(overrides)
        return overrides

    def _take(self, overrides: Overrides) -> None:
        if overrides != self.current:
            self.current = overrides
            self.version += 1
            log.warning(
                "operator overrides changed",
                extra={
                    "fields": {
                        "blocked_phrases": len(overrides.blocked_phrases),
                        "forced_fallback": ",".join(overrides.forced_fallback),
                    }
                },
            )


def check(overrides: Overrides) -> None:
    """Raise InvalidArgument on `overrides.blocked_phrases` for a phrase that can't be matched."""
    try:
        WordTable((phrase, "") for phrase in overrides.blocked_phrases)
    except InvalidArgument as error:
        raise InvalidArgument.field("overrides.blocked_phrases", error.violations[0].description) from error
