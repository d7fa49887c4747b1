"""All datasets of this service: making, finding and removing them. Knows no wire format."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chatmill.errors import Aborted, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from chatmill.plugins import Registry, nearest
from dataset_svc import build, inputs, manifest, paths, statistics, store
from dataset_svc.build import Meter, Plan, Progress
from dataset_svc.dataset import Context, ConversationDataset, Item
from dataset_svc.manifest import Manifest
from dataset_svc.parameters import Parameter, describe
from dataset_svc.split import MAX_TEST_FRACTION
from dataset_svc.store import StoredRows

log = logging.getLogger(__name__)

DEFAULT_CLASS = "conversations"
DEFAULT_TEST_FRACTION = 0.1

_ID = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
_OPEN_DATASETS = 16
_CHECK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class CreateRequest:
    """What a caller wants made; see `CreateDatasetRequest` in the contract for the meaning of each field."""

    dataset_id: str
    sources: Sequence[str]
    dataset_class: str = DEFAULT_CLASS
    parameters: Mapping[str, Any] = field(default_factory=dict)
    test_fraction: float = DEFAULT_TEST_FRACTION
    split_seed: int = 0
    limit: int = 0
    replace: bool = False
    force: bool = False
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Created:
    """The outcome: the dataset, and whether it was there already with the same content."""

    manifest: Manifest
    unchanged: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which items of a dataset: of a split (empty for all), of some languages (empty for all), from a position on."""

    dataset_id: str
    split: str = ""
    languages: tuple[str, ...] = ()
    start_index: int = 0
    limit: int = 0


@dataclass(frozen=True, slots=True)
class InstalledClass:
    """A dataset class that a request may name."""

    name: str
    criteria: str
    parameters: Sequence[Parameter]


class Catalog:
    """The datasets under `<home>/datasets`.

    Safe to use from several threads. What an earlier crash left half made is removed when this is constructed.

    Args:
        home: folder of all state.
        roots: folders that sources may lie in.
        installed: the dataset classes that are installed.

    Attributes:
        swept: names of the left-overs that were removed or restored at the start.
    """

    def __init__(self, home: Path, roots: Sequence[Path], installed: Registry[type[ConversationDataset]]) -> None:
        self._folder = home / "datasets"
        self._roots = tuple(roots)
        self._installed = installed
        self._busy: dict[str, str] = {}  # ids that are being created, with the request's id
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._open: OrderedDict[str, StoredRows] = OrderedDict()
        self.swept = store.sweep(self._folder)

    def create(self, request: CreateRequest, report: Callable[[Progress], None], check: Callable[[], None]) -> Created:
        """Make a dataset, or find that it exists already. Blocks; meant for a thread of its own.

        Args:
            report: takes progress, a few times a second.
            check: raises `Cancelled` when the work is no longer wanted; it then ends and leaves nothing behind.

        Raises:
            InvalidArgument: the request or a source is bad. NotFound: no such file or class.
            PermissionDenied: a source outside the roots. AlreadyExists: the id is taken by other data, or
            (`REQUEST_ID_REUSED`) the request id was used for another request.
            Aborted: the same id is being created by another request. ResourceExhausted: the disk is full.
        """
        plan = self._plan(request)
        with self._alone(plan, check):
            earlier = self._by_request(plan.request_id)
            if earlier:
                return Created(inputs.same_request(earlier, plan), unchanged=True)
            existing = manifest.read(self._folder / plan.dataset_id)
            meter = Meter(report, check)
            sources = build.fingerprint(plan, meter)
            wanted = inputs.digest(plan, sources)
            if existing and existing.input_digest == wanted and not request.force:
                return Created(existing, unchanged=True)
            difference = inputs.difference(existing, plan, sources) if existing else ""
            if existing and not request.replace and not (request.force and not difference):
                raise AlreadyExists(
                    f"the dataset {plan.dataset_id!r} exists and was made from other data or settings "
                    f"({difference or 'the code of its class has changed'}). Choose another id, or ask to replace it.",
                    metadata={"dataset": plan.dataset_id},
                )
            with store.Writer(self._folder, plan.dataset_id) as writer:
                result = build.run(plan, sources, wanted, writer, meter)
                check()
                made = writer.finish(result.draft, result.statistics.to_json(), replace_existing=existing is not None)
            self._forget(plan.dataset_id)
            return Created(made, unchanged=False)

    def open(self, dataset_id: str) -> StoredRows:
        """The items of a dataset. Raises NotFound."""
        folder = self._folder / dataset_id
        about = manifest.read(folder) if _ID.fullmatch(dataset_id) else None
        if about is None:
            self._forget(dataset_id)
            raise self._missing(dataset_id)
        with self._lock:
            known = self._open.get(dataset_id)
            if known is None or known.manifest != about:
                known = self._open[dataset_id] = StoredRows(folder, about)
            self._open.move_to_end(dataset_id)
            while len(self._open) > _OPEN_DATASETS:
                self._open.popitem(last=False)
            return known

    def dataset(self, dataset_id: str) -> ConversationDataset:
        """The dataset through its class, so that items answer `get_context` as the class says.

        Raises:
            NotFound: there is no such dataset. FailedPrecondition: its class is no longer installed.
        """
        rows = self.open(dataset_id)
        try:
            made = self._installed.get(rows.manifest.dataset_class)
        except NotFound as error:
            raise FailedPrecondition(
                f"the dataset {dataset_id!r} was made by a class that is not installed here: {error.message}",
                reason="UNKNOWN_PLUGIN",
            ) from error
        return made(rows, rows.manifest.parameters)

    def item(self, dataset_id: str, which: str | int) -> tuple[int, Item]:
        """One item by id or by position, with its position. Raises NotFound."""
        rows = self.open(dataset_id)
        index = rows.find(which) if isinstance(which, str) else which
        if index is None or not 0 <= index < len(rows):
            raise NotFound(
                f"the dataset {dataset_id!r} has no item {which!r}; its {len(rows)} items are numbered from 0.",
                metadata={"dataset": dataset_id, "item": str(which)},
            )
        return index, rows[index]

    def select(self, wanted: Selection) -> Iterator[tuple[int, Item]]:
        """The items that are wanted, in order, each with its position. Raises NotFound, InvalidArgument."""
        rows = self.open(wanted.dataset_id)
        if wanted.start_index < 0 or wanted.limit < 0:
            name = "start_index" if wanted.start_index < 0 else "limit"
            raise InvalidArgument.field(name, "must not be negative")
        positions = rows.positions(wanted.split, wanted.languages, wanted.start_index)
        return ((index, rows[index]) for index in (positions[: wanted.limit] if wanted.limit else positions))

    def context(self, dataset_id: str, item_id: str, turn: int) -> Context:
        """What the agent had before it at a turn of an item, as the dataset's class says.

        Raises:
            NotFound: there is no such item. InvalidArgument: it has no such turn.
            FailedPrecondition: the class is no longer installed.
        """
        index, _ = self.item(dataset_id, item_id)
        return self.dataset(dataset_id)[index].get_context(turn)

    def classes(self) -> Sequence[InstalledClass]:
        """The installed dataset classes, sorted by name."""
        return [InstalledClass(name, cls.criteria(), describe(cls.Parameters)) for name, cls in self._installed.items()]

    def listed(self, after: str, limit: int) -> list[Manifest]:
        """Datasets sorted by id, at most `limit` of those whose ids come behind `after`."""
        found: list[Manifest] = []
        for folder in sorted(self._folder.iterdir()) if self._folder.is_dir() else ():
            about = _listed(folder) if folder.name > after and _ID.fullmatch(folder.name) else None
            if about is not None:
                found.append(about)
                if len(found) == limit:
                    break
        return found

    def _missing(self, dataset_id: str) -> NotFound:
        folders = self._folder.iterdir() if self._folder.is_dir() else ()
        known = [folder.name for folder in folders if _ID.fullmatch(folder.name)]
        return NotFound(
            f"there is no dataset {dataset_id!r}{nearest(dataset_id, known) or '.'} "
            "`chatmill datasets` lists what there is.",
            metadata={"dataset": dataset_id},
        )

    def statistics(self, dataset_id: str, tokenizer: str = "") -> tuple[StoredRows, statistics.Statistics]:
        """A dataset, and the dataset in numbers.

        Args:
            tokenizer: path of a `tokenizer.json`, or of a folder that holds one, under the allowed roots; lengths
                are then given in its tokens too, which takes a pass over the items.

        Raises:
            NotFound: no such dataset or file. InvalidArgument: it is no tokenizer. PermissionDenied: outside the roots.
        """
        rows = self.open(dataset_id)
        stored = statistics.from_json((self._folder / dataset_id / store.STATISTICS).read_bytes())
        if not tokenizer:
            return rows, stored
        count_tokens = _token_counter(paths.resolve(tokenizer, self._roots, field="tokenizer"))
        return rows, replace(stored, tokens=statistics.gather(rows, count_tokens).tokens)

    def delete(self, dataset_id: str, *, allow_missing: bool = False) -> None:
        """Remove a dataset; calls that are reading it go on to their end. Raises NotFound unless `allow_missing`."""
        if not _ID.fullmatch(dataset_id) or not (self._folder / dataset_id).exists():
            if allow_missing:
                return
            raise self._missing(dataset_id)
        store.remove(self._folder, dataset_id)
        self._forget(dataset_id)

    def _plan(self, request: CreateRequest) -> Plan:
        if not _ID.fullmatch(request.dataset_id):
            raise InvalidArgument.field(
                "dataset_id",
                f"{request.dataset_id!r} is not an id; use 1 to 63 lower-case letters, digits and hyphens, beginning "
                "with a letter and not ending with a hyphen",
            )
        if not 0 <= request.test_fraction <= MAX_TEST_FRACTION:
            raise InvalidArgument.field(
                "test_fraction", f"must be between 0 and {MAX_TEST_FRACTION}, not {request.test_fraction}"
            )
        if request.limit < 0:
            raise InvalidArgument.field("limit", f"must be 0 (all) or more, not {request.limit}")
        rules = self._installed.get(request.dataset_class)(parameters=request.parameters)
        fields = ["source", *(f"more_sources[{i}]" for i in range(len(request.sources) - 1))]
        files = tuple(
            (paths.resolve(path, self._roots, field=name), path)
            for path, name in zip(request.sources, fields, strict=True)
        )
        return Plan(
            request.dataset_id,
            files,
            request.dataset_class,
            rules,
            seed=request.split_seed,
            test_fraction=request.test_fraction,
            limit=request.limit,
            request_id=request.request_id,
            labels=dict(request.labels),
        )

    def _by_request(self, request_id: str) -> Manifest | None:
        """The dataset that an earlier call with this request id made, as long as it is there."""
        found = self.listed("", sys.maxsize) if request_id else ()
        return next((about for about in found if about.request_id == request_id), None)

    @contextmanager
    def _alone(self, plan: Plan, check: Callable[[], None]) -> Iterator[None]:
        """Holds the dataset's id and the request's; a retry waits for the call that it repeats."""
        with self._freed:
            while plan.request_id and plan.request_id in self._busy.values():
                check()
                self._freed.wait(_CHECK_SECONDS)
            if plan.dataset_id in self._busy:
                raise Aborted(
                    f"the dataset {plan.dataset_id!r} is being created by another call. Wait for it, or try again.",
                    reason="DATASET_BUSY",
                    metadata={"dataset": plan.dataset_id},
                )
            self._busy[plan.dataset_id] = plan.request_id
        try:
            yield
        finally:
            with self._freed:
                del self._busy[plan.dataset_id]
                self._freed.notify_all()

    def _forget(self, dataset_id: str) -> None:
        with self._lock:
            self._open.pop(dataset_id, None)


def _listed(folder: Path) -> Manifest | None:
    try:
        return manifest.read(folder)
    except FailedPrecondition as error:  # one damaged dataset must not hide the others
        log.warning("left out of the list: %s", error.message)
        return None


def _token_counter(path: Path) -> statistics.CountTokens:
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"{file}: no such file. Name a tokenizer.json, or the folder of a model that has one.")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        # Its words may quote the file, which need not be the caller's to read; where it stopped does not.
        place = re.search(r"at line \d+ column \d+", str(error))
        problem = f"{file} is not a tokenizer.json{f' (reading ended {place[0]})' if place else ''}"
        raise InvalidArgument.field("tokenizer", problem) from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
