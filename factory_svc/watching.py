"""Follows the registry: the whole of it first, then each change, whoever made it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from chatmill.errors import Unavailable
from factory_svc.entry import Entry
from factory_svc.registry import Registry, Snapshot

_LOOK_SECONDS = 1.0
"""How often the file is looked at for changes by other processes; our own are seen at once."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a watcher is told.

    Attributes:
        snapshot: the registry after the change.
        entries: versions that are new or changed, aliases and scores included; all of them if `whole`.
        whole: whether everything known before is to be forgotten.
    """

    snapshot: Snapshot
    entries: tuple[Entry, ...]
    whole: bool


class RegistryWatch:
    """All watchers of one registry. Make it inside the event loop.

    Args:
        registry: what is watched.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._changed = asyncio.Event()
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._forget = registry.on_change(self._wake_from_thread)

    async def follow(self) -> AsyncIterator[Change]:
        """The whole registry, then each change.

        Raises:
            Unavailable: the service is stopping; follow again.
        """
        known = await asyncio.to_thread(self._registry.read)
        yield Change(known, tuple(known.listed()), whole=True)
        while not self._closed:
            changed = self._changed
            now = await asyncio.to_thread(self._registry.read)
            if now is known or now.revision == known.revision:
                await _wait(changed, _LOOK_SECONDS)
                continue
            yield _difference(known, now)
            known = now
        raise Unavailable("The factory is stopping; watch again.", reason="DRAINING", retry_after=5.0)

    async def close(self) -> None:
        """End all watchers."""
        self._closed = True
        self._forget()
        self._wake()

    def _wake_from_thread(self) -> None:
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _difference(old: Snapshot, new: Snapshot) -> Change:
    """What changed; if something is gone, everything is told anew."""
    if set(old.entries) - set(new.entries) or new.revision < old.revision:
        return Change(new, tuple(new.listed()), whole=True)
    changed = [
        entry
        for entry in new.listed()
        if old.entries.get(entry.name) != entry or old.aliases_of(entry) != new.aliases_of(entry)
    ]
    return Change(new, tuple(changed), whole=False)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return
