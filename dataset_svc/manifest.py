"""What a stored dataset is: the one file that makes its folder a dataset."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from chatmill.errors import FailedPrecondition
from dataset_svc.cleaning import Report

SCHEMA = 1
FILE_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class SourceInfo:
    """A file that conversations were read from.

    Attributes:
        path: as the caller gave it.
        sha256: of its bytes, lower-case hexadecimal.
        bytes: its size.
        modified: its time of change, nanoseconds since 1970.
        format: shape that its content was recognised as; empty before it was read.
        conversations: conversations found in it.
    """

    path: str
    sha256: str
    bytes: int
    modified: int
    format: str = ""
    conversations: int = 0


@dataclass(frozen=True, slots=True)
class Manifest:
    """A dataset without its items.

    Attributes:
        id: last segment of its resource name.
        dataset_class: name of the class that labelled it.
        parameters: of the class, as resolved.
        sources: the files, in the order in which they were read.
        input_digest: SHA-256 over all that decides the result; equal inputs need not be worked through again.
        digest: SHA-256 over the canonical items in order.
        split_seed: seed of the split.
        test_fraction: share of conversations in `test`.
        limit: at most so many conversations were read; 0 for all.
        rows: number of items.
        splits: items by split.
        languages: language codes that occur; the index refers to their positions.
        shards: files with items, in order.
        near_duplicates: conversations that share a side of the split with one that differs in numbers or punctuation
            only.
        cleaning: what was dropped and changed.
        create_time: seconds since 1970, UTC.
        request_id: of the call that created it, or empty.
        labels: free labels.
    """

    id: str
    dataset_class: str
    parameters: Mapping[str, Any]
    sources: tuple[SourceInfo, ...]
    input_digest: str
    digest: str
    split_seed: int
    test_fraction: float
    limit: int
    rows: int
    splits: Mapping[str, int]
    languages: tuple[str, ...]
    shards: tuple[str, ...]
    near_duplicates: int
    cleaning: Report
    create_time: float
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def source_sha256(self) -> str:
        """SHA-256 of the one source; of several, over their SHA-256 one after another."""
        if len(self.sources) == 1:
            return self.sources[0].sha256
        return hashlib.sha256("".join(source.sha256 for source in self.sources).encode()).hexdigest()

    def to_json(self) -> str:
        """As the text of `manifest.json`."""
        data = {**{k: getattr(self, k) for k in self.__slots__}, "schema": SCHEMA}
        data["sources"] = [asdict(source) for source in self.sources]
        data["cleaning"] = self.cleaning.to_json()
        return json.dumps(data, ensure_ascii=False, indent=2, sort_keys=True) + "\n"


def read(folder: Path) -> Manifest | None:
    """The manifest in a dataset's folder, or None if there is none.

    Raises:
        FailedPrecondition: it is damaged or of a newer Chatmill.
    """
    path = folder / FILE_NAME
    try:
        data = json.loads(path.read_bytes())
        schema = data.pop("schema")
        if schema == SCHEMA:
            data["sources"] = tuple(SourceInfo(**source) for source in data["sources"])
            data["cleaning"] = Report.from_json(data["cleaning"])
            data["languages"], data["shards"] = tuple(data["languages"]), tuple(data["shards"])
            return Manifest(**data)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise FailedPrecondition(
            f"{path} is damaged ({error}). Delete this dataset and create it again.", reason="DATASET_DAMAGED"
        ) from error
    raise FailedPrecondition(
        f"{path} has schema {schema}, and this Chatmill knows {SCHEMA}. Update Chatmill, or create the dataset again.",
        reason="DATASET_DAMAGED",
    )
