"""Finds the base model that a request names: in the registry, in an allowed folder, or on the Hugging Face hub.

A folder or a hub model is entered into the registry on first use, so that everything built on it refers to a version
with digests. The hub is only asked for facts here; the worker fetches the weights, at the commit that is pinned here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from chatmill.plugins import nearest
from factory_svc.digests import text_sha256
from factory_svc.entry import Contract, Entry, Source, check_id
from factory_svc.hub import Hub
from factory_svc.model_files import check_weights, list_artifacts, parameter_count, read_contract
from factory_svc.registry import Registry

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")


class Bases:
    """Resolves base models.

    Args:
        registry: where they are kept.
        roots: folders that models named by path must lie in; relative paths are tried under each.
        hub: the Hugging Face hub.
    """

    def __init__(self, registry: Registry, roots: Sequence[Path], hub: Hub | None = None) -> None:
        self._registry = registry
        self._roots = [root.expanduser().resolve() for root in roots]
        self._hub = hub or Hub()

    def resolve(self, name: str) -> Entry:
        """The registry entry that `name` stands for; entered now if it is a folder or hub id seen for the first time.

        Args:
            name: `models/{id}` with or without version or alias, a bare registry id, a folder, or `owner/model` on the
                hub with an optional `@revision`.

        Raises:
            NotFound: there is no such thing; the message has the nearest registry name.
            PermissionDenied: reason `PATH_NOT_ALLOWED`; the folder is outside the allowed ones.
            FailedPrecondition: it has no safetensors, or no chat template.
            Unavailable: the hub can't be reached.
        """
        if name.startswith("models/"):
            return self._registry.get(name, field_name="spec.base")
        known = {entry.model_id for entry in self._registry.read().entries.values()}
        if name in known:
            return self._registry.get(f"models/{name}")
        folder = self._folder(name, "spec.base")
        if folder is not None:
            return self.register(Source("folder", str(folder)))[0]
        if _HUB_ID.fullmatch(name):
            model, _, revision = name.partition("@")
            return self.register(Source("hub", model, revision))[0]
        raise NotFound(
            f"There is no base model {name!r}{nearest(name, known)}. It is neither in the registry "
            f"({', '.join(sorted(known)) or 'empty'}), nor a folder under {self._shown_roots()}, nor a hub id "
            "such as Qwen/Qwen2.5-0.5B-Instruct.",
            reason="BASE_NOT_FOUND",
            metadata={"base": name},
        )

    def register(
        self, source: Source, *, model_id: str = "", system_prompt: str = "", **facts: Any
    ) -> tuple[Entry, bool]:
        """Enter a model that was not trained here.

        Args:
            source: where it is.
            model_id: its id; derived from the source when empty.
            system_prompt: used when a request has no system message.
            facts: further fields of the entry: `description`, `license`, `labels`, `created_by`.

        Returns:
            the entry, and whether it was there already.

        Raises:
            NotFound, PermissionDenied, FailedPrecondition, Unavailable: see `resolve`.
            InvalidArgument: the id is not allowed.
        """
        if model_id:
            check_id(model_id, "model_id")
        found = {"folder": self._from_folder, "hub": self._from_hub, "remote": self._from_remote}[source.kind](source)
        digest = text_sha256(system_prompt) if system_prompt else ""
        entry = replace(
            found,
            model_id=model_id or derived_id(source),
            conversation=replace(found.conversation, system_prompt=system_prompt, system_prompt_digest=digest),
            **{key: value for key, value in facts.items() if value},
        )
        return self._registry.add_once(entry)

    def location(self, entry: Entry) -> tuple[str, str | None]:
        """What to load the weights of `entry` from: a folder or hub id, and the hub's commit.

        Raises:
            FailedPrecondition: the entry has no weights of its own that can be loaded.
        """
        if entry.source is not None and entry.source.kind == "hub":
            return entry.source.location, entry.source.revision
        weights = [a for a in entry.artifacts if a.path.endswith(".safetensors")]
        if entry.kind not in ("base", "merged") or not weights:
            raise FailedPrecondition(
                f"{entry.name} is of kind {entry.kind} and can't be trained on; use its base {entry.base or ''}".strip()
                + ".",
                reason="NOT_A_BASE",
            )
        return str(self._registry.artifact_path(weights[0]).parent), None

    def check_folder(self, folder: str, field: str) -> None:
        """Raise unless the absolute path `folder` is a folder that may be read.

        Args:
            folder: the path.
            field: the request's field that it stands in, for the error.

        Raises:
            InvalidArgument: there can be no such path.
            PermissionDenied: reason `PATH_NOT_ALLOWED`; it lies outside the roots.
            NotFound: there is nothing.
        """
        self._folder(folder, field)

    def _folder(self, name: str, field: str) -> Path | None:
        """The existing folder that `name` means, or None if it does not look like one.

        Raises:
            InvalidArgument: there can be no such path; names `field`.
            PermissionDenied: it lies outside the roots.
            NotFound: it is clearly a path, and there is nothing.
        """
        if "\0" in name:
            raise InvalidArgument.field(field, "must hold no NUL character")
        try:
            return self._existing(name)
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, or ~ of nobody
            problem = getattr(error, "strerror", None) or "its links or its ~ lead nowhere"
            raise InvalidArgument.field(field, f"is not a usable path ({problem})") from None

    def _existing(self, name: str) -> Path | None:
        path = Path(name).expanduser()
        tried = [path] if path.is_absolute() else [root / path for root in self._roots]
        allowed = [p.resolve() for p in tried if self._allowed(p.resolve())]
        for candidate in allowed:
            if candidate.is_dir():
                return candidate
        clearly_path = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
        if not clearly_path:
            return None
        if not allowed:
            raise PermissionDenied(
                f"{name} lies outside the folders that the factory may read ({self._shown_roots()}). "
                "Move it there, or add its folder to factory.roots.",
                reason="PATH_NOT_ALLOWED",
            )
        raise NotFound(f"There is no folder {name} under {self._shown_roots()}.", reason="BASE_NOT_FOUND")

    def _allowed(self, path: Path) -> bool:
        return any(path == root or path.is_relative_to(root) for root in self._roots)

    def _shown_roots(self) -> str:
        return ", ".join(map(str, self._roots)) or "no folder at all"

    def _from_folder(self, source: Source) -> Entry:
        folder = self._folder(source.location, "source.folder")
        if folder is None:
            raise NotFound(f"There is no folder {source.location}.", reason="BASE_NOT_FOUND")
        check_weights(folder)
        return Entry(
            model_id="",
            version=0,
            kind="base",
            source=Source("folder", str(folder)),
            artifacts=list_artifacts(folder, str(folder)),
            conversation=read_contract(folder),
            parameter_count=parameter_count(folder),
        )

    def _from_hub(self, source: Source) -> Entry:
        model = self._hub.describe(source.location, source.revision or None)
        return Entry(
            model_id="",
            version=0,
            kind="base",
            source=Source("hub", source.location, model.commit),
            artifacts=model.artifacts,
            conversation=model.conversation,
            parameter_count=model.parameter_count,
            license=model.license,
        )

    def _from_remote(self, source: Source) -> Entry:
        return Entry(model_id="", version=0, kind="remote", source=source, conversation=Contract())


def derived_id(source: Source) -> str:
    """A registry id made of the last part of where a model lies, for example `qwen2-5-0-5b-instruct`."""
    last = (source.revision if source.kind == "remote" else "") or source.location.rstrip("/").rpartition("/")[2]
    plain = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-") or "model"
    if not plain[0].isalpha():
        plain = f"m-{plain}"
    return plain[:63].strip("-")
