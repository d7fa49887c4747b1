"""Datasets on disk: one folder each, complete or absent.

A folder holds `items-NNNNN.jsonl` (one item a line, see `rows`), `index.bin` (one fixed-size record per item, so
that any item is one read away), `statistics.json` and `manifest.json`. It is written under a hidden name and renamed
when all is on the disk, so nobody ever sees half a dataset. What a crash leaves behind is removed when the service
starts next.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self, overload

import numpy as np

from chatmill import disk
from chatmill.errors import AlreadyExists, FailedPrecondition, NotFound
from dataset_svc import manifest, rows
from dataset_svc.dataset import Item
from dataset_svc.manifest import Manifest
from dataset_svc.split import SPLITS

INDEX = "index.bin"
STATISTICS = "statistics.json"
SHARD_BYTES = 256 * 1024 * 1024
"""A new shard is begun beyond this size, so that no file grows past what is handy to copy."""

_RECORD = np.dtype(
    [("offset", "<u8"), ("id_hash", "<u8"), ("length", "<u4"), ("shard", "<u2"), ("language", "<u2"), ("split", "u1")]
)
_CREATING, _DELETED, _REPLACED = ".creating-", ".deleted-", ".replaced-"
_LOCK = "lock"


class Writer:
    """Writes one dataset; a context manager that leaves nothing behind unless `finish` was reached.

    Args:
        folder: the folder of all datasets.
        dataset_id: id of the new one.
    """

    def __init__(self, folder: Path, dataset_id: str) -> None:
        self._final = folder / dataset_id
        self._temporary = folder / f"{_CREATING}{dataset_id}.{uuid.uuid4().hex[:8]}"
        self._digest = hashlib.sha256()
        self._ids: set[str] = set()
        self._languages: dict[str, int] = {}
        self._splits = dict.fromkeys(SPLITS, 0)
        self._shards: list[str] = []
        self._shard: IO[bytes] | None = None
        self._offset = 0
        self._files: list[IO[bytes]] = []
        self._finished = False

    def __enter__(self) -> Self:
        with disk.clear_errors(str(self._final), self._final.parent):
            self._temporary.mkdir(parents=True)
            lock = (self._temporary / _LOCK).open("wb")
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._files.append(lock)
            self._index = (self._temporary / INDEX).open("wb")
            self._files.append(self._index)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            try:
                file.close()
            except OSError:  # closing flushes, and on a full disk that fails a second time
                if self._finished:
                    raise
        if not self._finished:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def rows(self) -> int:
        """Items written so far."""
        return len(self._ids)

    def unique_id(self, wanted: str) -> str:
        """`wanted`, or with the first free number behind it if an earlier item has that id."""
        chosen, number = wanted, 1
        while chosen in self._ids:
            number += 1
            chosen = f"{wanted[:56]}-{number}"
        return chosen

    def add(self, item: Item) -> None:
        """Write the next item; its id must be unique.

        Raises:
            ResourceExhausted: reason `DISK_FULL`.
        """
        seen, source = rows.encode(item)
        line = rows.line(seen, source)
        with disk.clear_errors(str(self._final), self._final.parent):
            if self._shard is None or self._offset + len(line) > SHARD_BYTES:
                self._next_shard()
            assert self._shard is not None
            self._shard.write(line)
            record = (
                self._offset,
                _id_hash(item.id),
                len(line),
                len(self._shards) - 1,
                self._languages.setdefault(item.language, len(self._languages)),
                SPLITS.index(item.split),
            )
            self._index.write(np.array(record, dtype=_RECORD).tobytes())
        self._offset += len(line)
        self._ids.add(item.id)
        self._splits[item.split] += 1
        self._digest.update(seen.encode() + b"\n")

    def finish(self, draft: Manifest, statistics: str, *, replace_existing: bool) -> Manifest:
        """Make the dataset visible under its id, all at once.

        Args:
            draft: the manifest; what only the writer knows (digest, counts, shards) is filled in here.
            statistics: text of `statistics.json`.
            replace_existing: put it in the place of a dataset of that id; otherwise the id must be free.

        Returns:
            The manifest as stored.
        """
        complete = replace(
            draft,
            digest=self._digest.hexdigest(),
            rows=self.rows,
            splits=self._splits,
            languages=tuple(self._languages),
            shards=tuple(self._shards),
        )
        with disk.clear_errors(str(self._final), self._final.parent):
            for file in self._files[1:]:
                _to_disk(file)
            _write(self._temporary / STATISTICS, statistics)
            _write(self._temporary / manifest.FILE_NAME, complete.to_json())
            _sync_folder(self._temporary)
            _publish(self._temporary, self._final, replace_existing=replace_existing)
            (self._final / _LOCK).unlink(missing_ok=True)
        self._finished = True
        return complete

    def _next_shard(self) -> None:
        name = f"items-{len(self._shards):05d}.jsonl"
        self._shard = (self._temporary / name).open("wb")
        self._files.append(self._shard)
        self._shards.append(name)
        self._offset = 0


class StoredRows(Sequence[Item]):
    """The items of a stored dataset, read one by one when asked for; safe to share between threads and to pickle.

    All files are opened at once, so a dataset that is deleted or replaced meanwhile is read to its end as it was.

    Args:
        folder: the dataset's folder.
        about: its manifest.

    Raises:
        FailedPrecondition: files are missing or too short.
    """

    def __init__(self, folder: Path, about: Manifest) -> None:
        self._folder = folder
        self.manifest = about
        try:
            self._index: np.ndarray[Any, Any] = np.memmap(folder / INDEX, dtype=_RECORD, mode="r")
            self._shards = [os.open(folder / name, os.O_RDONLY) for name in about.shards]
            weakref.finalize(self, _close, self._shards)
        except (OSError, ValueError) as error:
            raise FailedPrecondition(
                f"{folder} is damaged ({error}). Delete this dataset and create it again.", reason="DATASET_DAMAGED"
            ) from error

    def __reduce__(self) -> tuple[Callable[[Path, Manifest], StoredRows], tuple[Path, Manifest]]:
        return open_rows, (self._folder, self.manifest)

    def __len__(self) -> int:
        return self.manifest.rows

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"there are {len(self)} items, and no number {index}")
        record = self._index[index]
        raw = os.pread(self._shards[record["shard"]], int(record["length"]), int(record["offset"]))
        if len(raw) != record["length"]:
            raise FailedPrecondition(
                f"{self._folder} is damaged (item {index} is cut off). Delete this dataset and create it again.",
                reason="DATASET_DAMAGED",
            )
        return rows.decode(raw)

    def find(self, item_id: str) -> int | None:
        """Position of the item with that id, or None."""
        for position in np.flatnonzero(self._index["id_hash"] == _id_hash(item_id)):
            if self[int(position)].id == item_id:
                return int(position)
        return None

    def positions(self, split: str = "", languages: Sequence[str] = (), start: int = 0) -> list[int]:
        """Positions of the items of a split (empty for all) and of some languages (empty for all), from `start` on.

        A language takes its regional forms along: `en` means `en-GB` too.
        """
        wanted = np.ones(len(self), dtype=bool)
        if split:
            wanted &= self._index["split"] == SPLITS.index(split)
        if languages:
            tags = [code.lower() for code in languages]
            known = [n for n, code in enumerate(self.manifest.languages) if _is_one_of(code.lower(), tags)]
            wanted &= np.isin(self._index["language"], known)
        wanted[:start] = False
        return [int(position) for position in np.flatnonzero(wanted)]


def open_rows(folder: Path, expected: Manifest | None = None) -> StoredRows:
    """The items of the dataset in `folder`.

    Args:
        expected: manifest that it had before, when another process opens it again.

    Raises:
        NotFound: there is no dataset. FailedPrecondition: it is damaged, or holds other data than `expected`.
    """
    found = manifest.read(folder)
    if found is None:
        raise NotFound(f"there is no dataset {folder.name!r}.", metadata={"dataset": folder.name})
    if expected is not None and found.digest != expected.digest:
        raise FailedPrecondition(
            f"the dataset {folder.name!r} was replaced by other data while it was being read. Open it again.",
            reason="DATASET_REPLACED",
        )
    return StoredRows(folder, found)


def sweep(folder: Path) -> list[str]:
    """Remove what crashes have left behind; returns the names removed or restored.

    What another process is writing at this moment holds a lock and is left alone.
    """
    found = []
    for path in sorted(folder.glob(".*")) if folder.is_dir() else ():
        if path.name.startswith(_REPLACED):
            original = folder / path.name.removeprefix(_REPLACED).rsplit(".", 1)[0]
            if not original.exists():  # the crash fell between the two renames
                path.rename(original)
            else:
                shutil.rmtree(path, ignore_errors=True)
        elif path.name.startswith(_DELETED) or (path.name.startswith(_CREATING) and not _locked(path / _LOCK)):
            shutil.rmtree(path, ignore_errors=True)
        else:
            continue
        found.append(path.name)
    return found


def remove(folder: Path, dataset_id: str) -> None:
    """Remove a dataset: at once for everyone who looks, then its files."""
    hidden = folder / f"{_DELETED}{dataset_id}.{uuid.uuid4().hex[:8]}"
    (folder / dataset_id).rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _publish(temporary: Path, final: Path, *, replace_existing: bool) -> None:
    if not (replace_existing and final.exists()):
        try:
            temporary.rename(final)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise AlreadyExists(f"the dataset {final.name!r} was created by another process meanwhile.") from error
        return _sync_folder(final.parent)
    aside = final.parent / f"{_REPLACED}{final.name}.{uuid.uuid4().hex[:8]}"
    final.rename(aside)
    try:
        temporary.rename(final)
    except OSError:
        aside.rename(final)
        raise
    _sync_folder(final.parent)
    return shutil.rmtree(aside, ignore_errors=True)


def _write(path: Path, text: str) -> None:
    with path.open("wb") as file:
        file.write(text.encode())
        _to_disk(file)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> bool:
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _is_one_of(code: str, tags: Sequence[str]) -> bool:
    return any(code == tag or code.startswith(f"{tag}-") for tag in tags)


def _id_hash(item_id: str) -> int:
    return int.from_bytes(hashlib.sha256(item_id.encode()).digest()[:8], "little")
