"""What the registry says about models, as the serving side needs it, and how a name finds its version.

This module knows no file, no engine and no contract; `clients` fills the catalog from RegistryService.WatchModels.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from chatmill.plugins import nearest

_NAME = re.compile(r"models/(?P<id>[^/]+)(?:/versions/(?P<version>[0-9]+)|/aliases/(?P<alias>[^/]+))?")
_DEPTH = 8
"""Models that may stand on one another; more is a cycle in the registry."""


class ModelKind(StrEnum):
    """What kind of thing a model is."""

    BASE = "base"
    ADAPTER = "adapter"
    PROMPT = "prompt"
    MERGED = "merged"
    REMOTE = "remote"


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file of a model.

    Attributes:
        path: relative to the registry's artifact root, or absolute.
        sha256: of its bytes, lower-case hexadecimal.
        size_bytes: its size.
    """

    path: str
    sha256: str
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A version of a model.

    Attributes:
        name: `models/{id}/versions/{n}`.
        revision: digest over everything that decides what it says; state of one revision is never used for another.
        kind: what kind of thing it is.
        base: name of the version that it stands on; empty for one with weights of its own.
        files: its files.
        aliases: aliases that point to it.
        system_prompt: used when a request has none.
        examples: exchanges (user, assistant) that precede the conversation.
        prompt_template: how the newest user message is put, with {context}, {history} and {question}; empty for as is.
        stop_tokens: texts of the tokens that end a turn; empty if not recorded.
        template_digest: sha256 of the chat template; empty if not recorded.
        max_context: tokens of context; 0 for the base's own.
        sampling_defaults: by field name of `Sampling`, where a request is silent.
        hub_id: where its weights lie on the Hugging Face hub, if not in `files`.
        base_url: access point of a remote model.
        remote_name: commit on the hub, or name at the access point.
    """

    name: str
    revision: str
    kind: ModelKind
    base: str = ""
    files: tuple[ModelFile, ...] = ()
    aliases: tuple[str, ...] = ()
    system_prompt: str = ""
    examples: tuple[tuple[str, str], ...] = ()
    prompt_template: str = ""
    stop_tokens: tuple[str, ...] = ()
    template_digest: str = ""
    max_context: int = 0
    sampling_defaults: Mapping[str, object] = field(default_factory=dict)
    hub_id: str = ""
    base_url: str = ""
    remote_name: str = ""

    @property
    def model_id(self) -> str:
        """The id in its name."""
        return self.name.split("/")[1]

    @property
    def version(self) -> int:
        """The number in its name."""
        return int(self.name.rsplit("/", 1)[1])


@dataclass(frozen=True, slots=True)
class CatalogChange:
    """A message of the registry.

    Attributes:
        entries: all entries in a snapshot, else those that are new or changed.
        snapshot: forget what was known before.
    """

    entries: tuple[ModelEntry, ...]
    snapshot: bool = False


class RegistrySource(Protocol):
    """Where the entries come from."""

    def watch(self) -> AsyncIterator[CatalogChange]:
        """The whole registry first, then each change; reconnects by itself and begins with a snapshot again."""
        ...


class Catalog:
    """All known entries.

    Attributes:
        known: whether the registry was heard of at all.
    """

    def __init__(self) -> None:
        self.known = False
        self._entries: dict[str, ModelEntry] = {}
        self._newest: dict[str, ModelEntry] = {}
        self._aliases: dict[tuple[str, str], ModelEntry] = {}

    def apply(self, change: CatalogChange) -> list[ModelEntry]:
        """Take in a change; the entries that are gone or have another revision now."""
        before = self._entries
        self._entries = {} if change.snapshot else dict(before)
        self._entries.update((entry.name, entry) for entry in change.entries)
        self.known = True
        self._newest, self._aliases = {}, {}
        for entry in sorted(self._entries.values(), key=lambda e: e.version):
            self._newest[entry.model_id] = entry
            self._aliases.update(((entry.model_id, alias), entry) for alias in entry.aliases)
        return [e for e in before.values() if (now := self._entries.get(e.name)) is None or now.revision != e.revision]

    def entries(self) -> list[ModelEntry]:
        """All entries, sorted by id and version."""
        return sorted(self._entries.values(), key=lambda e: (e.model_id, e.version))

    def get(self, name: str) -> ModelEntry:
        """The version that a name stands for.

        Raises:
            InvalidArgument: on `model`: not a model name.
            NotFound: no such model, version or alias; the message has the nearest name.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgument.field(
                "model",
                f"{name!r} is not a model name; use models/ID, models/ID/versions/N or models/ID/aliases/ALIAS",
            )
        if match["version"]:
            entry = self._entries.get(f"models/{match['id']}/versions/{int(match['version'])}")
        elif match["alias"]:
            entry = self._aliases.get((match["id"], match["alias"]))
        else:
            entry = self._newest.get(match["id"])
        if entry is None:
            raise NotFound(
                f"There is no model {name!r} in the registry{nearest(name, self._names()) or '.'} "
                "`chatmill models` lists what there is.",
                metadata={"model": name},
            )
        return entry

    def weights(self, entry: ModelEntry) -> tuple[ModelEntry, ModelEntry | None]:
        """The entry whose weights `entry` runs on, and the adapter on it or None.

        Raises:
            FailedPrecondition: its base is not in the registry, or two adapters stand on one another.
        """
        adapter: ModelEntry | None = None
        current = entry
        for _ in range(_DEPTH):
            if current.kind in (ModelKind.BASE, ModelKind.MERGED, ModelKind.REMOTE):
                return current, adapter
            if current.kind is ModelKind.ADAPTER:
                if adapter is not None:
                    raise FailedPrecondition(
                        f"{adapter.name} is an adapter on the adapter {current.name}; only one is served at a time. "
                        "Merge the first one into its base.",
                        reason="ADAPTER_ON_ADAPTER",
                    )
                adapter = current
            try:
                current = self.get(current.base)
            except (NotFound, InvalidArgument):
                raise FailedPrecondition(
                    f"{entry.name} stands on {current.base!r}, which is not in the registry. Register that again.",
                    reason="BASE_MISSING",
                ) from None
        raise FailedPrecondition(f"{entry.name}: its bases go round in a circle.", reason="BASE_MISSING")

    def _names(self) -> list[str]:
        aliases = [f"models/{model}/aliases/{alias}" for model, alias in self._aliases]
        return [*(f"models/{model}" for model in self._newest), *self._entries, *aliases]
