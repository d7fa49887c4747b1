"""The model registry: one YAML file that people can read, changed only as a whole and only under a lock.

Every change reads the file anew under a file lock, writes a new one beside it and renames it over the old, so that
several processes may write and a reader always sees a whole registry. Versions are immutable and count up; aliases move
and remember where they pointed. The registry knows neither jobs nor how models are trained.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock

from chatmill import disk
from chatmill.errors import InvalidArgument, NotFound
from chatmill.plugins import nearest
from factory_svc.digests import verify
from factory_svc.entry import (
    SCHEMA_VERSION,
    Artifact,
    Entry,
    Evaluation,
    ModelName,
    check_id,
    from_yaml_data,
    to_yaml_data,
)

_HEADER = """\
# Chatmill's model registry. Versions never change; aliases move. Safe to read at any time. It is rewritten as a whole
# with each change, so comments of your own do not last.
"""
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, slots=True)
class AliasMove:
    """One move of an alias.

    Attributes:
        old: version it named before; None at first.
        new: version it names since.
        when: when.
        who: who moved it; empty if unknown.
        reason: why, in words.
    """

    old: int | None
    new: int
    when: datetime
    who: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole registry at one moment.

    Attributes:
        revision: counts up with each change.
        entries: all versions by resource name.
        aliases: for each model id, the aliases with the moves that brought them where they are.
    """

    revision: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, dict[str, tuple[AliasMove, ...]]] = field(default_factory=dict)

    def aliases_of(self, entry: Entry) -> list[str]:
        """Names of the aliases that point to `entry`, sorted."""
        moves = self.aliases.get(entry.model_id, {})
        return sorted(alias for alias, history in moves.items() if history[-1].new == entry.version)

    def versions(self, model_id: str) -> list[Entry]:
        """All versions of a model, newest first."""
        found = [e for e in self.entries.values() if e.model_id == model_id]
        return sorted(found, key=lambda e: -e.version)

    def listed(self, parent: str = "", after: str = "") -> list[Entry]:
        """All versions sorted by id, newest first.

        Args:
            parent: only those of this `models/{id}`.
            after: only those behind this version, given by its full name; it may have gone since.

        Raises:
            InvalidArgument: `parent` or `after` is not such a name.
        """
        found: Iterable[Entry] = self.entries.values()
        if parent:
            found = self.versions(ModelName.parse(parent, field_name="parent").model_id)
        if after:
            last = ModelName.parse(after, field_name="page_token")
            found = [e for e in found if (e.model_id, -e.version) > (last.model_id, -(last.version or 0))]
        return sorted(found, key=lambda e: (e.model_id, -e.version))

    def find(self, name: str, *, field_name: str = "name") -> Entry:
        """The version that `name` stands for.

        Args:
            name: of the version, an alias or the model.
            field_name: the request's field that it stands in, for the error.

        Raises:
            InvalidArgument: `name` is not a model name.
            NotFound: there is none; the message has the nearest name.
        """
        wanted = ModelName.parse(name, field_name=field_name)
        versions = self.versions(wanted.model_id)
        if not versions:
            known = sorted({e.model_id for e in self.entries.values()})
            raise NotFound(
                f"There is no model models/{wanted.model_id}{nearest(wanted.model_id, known) or '.'} "
                f"Known: {', '.join(known) or 'none'}.",
                metadata={"name": name},
            )
        if wanted.alias is not None:
            moves = self.aliases.get(wanted.model_id, {})
            if wanted.alias not in moves:
                raise NotFound(
                    f"models/{wanted.model_id} has no alias {wanted.alias!r}{nearest(wanted.alias, moves)}. "
                    f"Aliases: {', '.join(sorted(moves)) or 'none'}.",
                    metadata={"name": name},
                )
            return self.entries[f"models/{wanted.model_id}/versions/{moves[wanted.alias][-1].new}"]
        if wanted.version is None:
            return versions[0]
        for entry in versions:
            if entry.version == wanted.version:
                return entry
        raise NotFound(
            f"models/{wanted.model_id} has no version {wanted.version}; the newest is {versions[0].version}.",
            metadata={"name": name},
        )


class Registry:
    """The registry file of one `CHATMILL_HOME`.

    Args:
        home: folder of `registry.yaml` and `artifacts/`; made if it is missing.
        shipped: entries that come with Chatmill; shown, and never written.
    """

    def __init__(self, home: Path, shipped: Sequence[Entry] = ()) -> None:
        self.path = home / "registry.yaml"
        self.artifact_root = home / "artifacts"
        self._shipped = {e.name: e for e in shipped}
        self._lock = FileLock(str(home / ".registry.lock"))
        self._cached: tuple[tuple[int, int, int], Snapshot] | None = None
        self._listeners: list[Callable[[], None]] = []
        self.artifact_root.mkdir(parents=True, exist_ok=True)

    def read(self) -> Snapshot:
        """The registry as it is now.

        Raises:
            InvalidArgument: reason `INVALID_REGISTRY`; the file was damaged by hand; names the place.
        """
        stamp = self._stamp()
        if self._cached is None or self._cached[0] != stamp:
            self._cached = (stamp, self._parse())
        return self._cached[1]

    def get(self, name: str, *, field_name: str = "name") -> Entry:
        """The version that `name` stands for. Raises NotFound or InvalidArgument, as `Snapshot.find`."""
        return self.read().find(name, field_name=field_name)

    def add(self, entry: Entry, files: Path | None = None) -> Entry:
        """Register the next version of `entry.model_id`.

        Args:
            entry: all but the version, the artifacts' paths and the digests that follow from them.
            files: folder with the files, which becomes the version's folder by a rename; None if there are none.

        Returns:
            the entry as it stands in the registry.

        Raises:
            InvalidArgument: the id is not allowed.
            ResourceExhausted: the disk is full; the registry and `files` are as before.
        """
        check_id(entry.model_id, "model_id")
        with self._changing() as (snapshot, write):
            version = max((e.version for e in snapshot.versions(entry.model_id)), default=0) + 1
            target = self.artifact_root / entry.model_id / str(version)
            final = replace(entry, version=version, created=entry.created or _now())
            if files is not None:
                shown = f"{entry.model_id}/{version}"
                final = replace(final, artifacts=tuple(_moved(a, shown) for a in entry.artifacts))
                _make_way(target)
                target.parent.mkdir(parents=True, exist_ok=True)
                files.rename(target)
            final = final.with_revision()
            try:
                write(replace(snapshot, entries={**snapshot.entries, final.name: final}))
            except BaseException:
                if files is not None:
                    target.rename(files)
                raise
        return final

    def add_once(self, entry: Entry) -> tuple[Entry, bool]:
        """Register a model that lies elsewhere, unless a version with the same source and content is there.

        Returns:
            the entry, and whether it was there already.

        Raises:
            InvalidArgument, ResourceExhausted: as `add`.
        """
        wanted = entry.with_revision()
        with self._lock:
            for existing in self._parse().versions(entry.model_id):
                if existing.source == wanted.source and existing.revision == wanted.revision:
                    return existing, True
            return self.add(wanted), False

    def set_alias(self, name: str, alias: str, *, reason: str = "", who: str = "") -> tuple[Entry, str]:
        """Point `alias` to a version.

        Returns:
            the version, and the resource name of the version that the alias named before (empty if none).

        Raises:
            NotFound: no such version.
            InvalidArgument: the alias is not allowed.
        """
        check_id(alias, "alias")
        with self._changing() as (snapshot, write):
            entry = snapshot.find(name, field_name="model")
            moves = dict(snapshot.aliases.get(entry.model_id, {}))
            history = moves.get(alias, ())
            old = history[-1].new if history else None
            previous = f"models/{entry.model_id}/versions/{old}" if old is not None else ""
            if old != entry.version:
                moves[alias] = (*history, AliasMove(old, entry.version, _now(), who, reason))
                write(replace(snapshot, aliases={**snapshot.aliases, entry.model_id: moves}))
        return entry, previous

    def record_evaluation(self, name: str, evaluation: Evaluation) -> Entry:
        """Add a score to a version; one of the same evaluation is replaced. Raises NotFound."""
        with self._changing() as (snapshot, write):
            entry = snapshot.find(name, field_name="model")
            kept = tuple(e for e in entry.evaluations if e.evaluation != evaluation.evaluation)
            entry = replace(entry, evaluations=(*kept, evaluation))
            write(replace(snapshot, entries={**snapshot.entries, entry.name: entry}))
        return entry

    def artifact_path(self, artifact: Artifact) -> Path:
        """Where the file lies on this machine."""
        path = Path(artifact.path)
        return path if path.is_absolute() else self.artifact_root / path

    def verify(self, entry: Entry) -> None:
        """Check every file of a version. Raises FailedPrecondition (`ARTIFACT_MISMATCH`) for the first that differs."""
        for artifact in entry.artifacts:
            verify(artifact, self.artifact_path(artifact))

    def on_change(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call `listener` after each change made through this object; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @contextmanager
    def _changing(self) -> Iterator[tuple[Snapshot, Callable[[Snapshot], None]]]:
        written: list[Snapshot] = []

        def write(snapshot: Snapshot) -> None:
            self._write(replace(snapshot, revision=snapshot.revision + 1))
            written.append(snapshot)

        with self._lock:
            yield self._parse(), write
            self._cached = None
        if written:
            for listener in list(self._listeners):
                listener()

    def _stamp(self) -> tuple[int, int, int]:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return (0, 0, 0)
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def _parse(self) -> Snapshot:
        if not self.path.exists():
            return Snapshot(0, dict(self._shipped), {})
        try:
            data = yaml.load(self.path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506 - a safe loader
        except yaml.YAMLError as error:
            raise InvalidArgument(f"{self.path} is not YAML: {error}", reason="INVALID_REGISTRY") from None
        if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
            raise InvalidArgument(
                f"{self.path}: expected schema_version {SCHEMA_VERSION}. Restore the file or move it away.",
                reason="INVALID_REGISTRY",
            )
        return self._snapshot(data)

    def _snapshot(self, data: dict[str, Any]) -> Snapshot:
        entries = dict(self._shipped)
        aliases: dict[str, dict[str, tuple[AliasMove, ...]]] = {}
        for model_id, model in (data.get("models") or {}).items():
            for version, values in (model.get("versions") or {}).items():
                where = f"{self.path}: models.{model_id}.versions.{version}"
                shipped = self._shipped.get(f"models/{model_id}/versions/{version}")
                if shipped is None:
                    entry = from_yaml_data(model_id, int(version), values, where)
                else:
                    scores = from_yaml_data(model_id, int(version), {"kind": "base", **values}, where).evaluations
                    entry = replace(shipped, evaluations=scores)
                entries[entry.name] = entry
            moves = {
                alias: tuple(
                    AliasMove(m.get("from"), m["to"], m["when"], m.get("who", ""), m.get("reason", "")) for m in h
                )
                for alias, h in (model.get("aliases") or {}).items()
            }
            if moves:
                aliases[model_id] = moves
        return Snapshot(int(data.get("revision", 0)), entries, aliases)

    def _write(self, snapshot: Snapshot) -> None:
        models: dict[str, Any] = {}
        for model_id in sorted({e.model_id for e in snapshot.entries.values()} | set(snapshot.aliases)):
            versions = {e.version: self._written(e) for e in reversed(snapshot.versions(model_id)) if self._written(e)}
            aliases = {
                alias: [_move(m) for m in history]
                for alias, history in sorted(snapshot.aliases.get(model_id, {}).items())
            }
            model = {key: value for key, value in (("aliases", aliases), ("versions", versions)) if value}
            if model:
                models[model_id] = model
        data = {"schema_version": SCHEMA_VERSION, "revision": snapshot.revision, "models": models}
        text = yaml.dump(data, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120)
        _replace_file(self.path, _HEADER + text)

    def _written(self, entry: Entry) -> dict[str, Any]:
        """What the file keeps of an entry: of a shipped one only its scores."""
        data = to_yaml_data(entry)
        if entry.shipped:
            return {"evaluations": data["evaluations"]} if "evaluations" in data else {}
        return data


def _move(move: AliasMove) -> dict[str, Any]:
    data = {"from": move.old, "to": move.new, "when": move.when, "who": move.who, "reason": move.reason}
    return {key: value for key, value in data.items() if value not in (None, "")}


def _moved(artifact: Artifact, folder: str) -> Artifact:
    return replace(artifact, path=f"{folder}/{artifact.path.rpartition('/')[2]}")


def _make_way(target: Path) -> None:
    """Move aside what a crash between the rename and the registry's write left behind; it is in no entry."""
    if target.exists():
        target.rename(Path(tempfile.mkdtemp(prefix=f".{target.name}.orphan.", dir=target.parent)) / target.name)


def _replace_file(path: Path, text: str) -> None:
    with disk.clear_errors(str(path), path.parent):
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
