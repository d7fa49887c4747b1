"""The way of the data, once through: files -> conversations -> cleaning -> the client's class -> split -> store.

Works row by row, so memory holds one conversation and a few bytes about each earlier one. Knows nothing of requests;
who calls it decides what may be read and whether anything must be done at all.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chatmill.errors import Aborted, FailedPrecondition, InvalidArgument
from dataset_svc.cleaning import Cleaning, Report
from dataset_svc.conversation import Conversation
from dataset_svc.dataset import ConversationDataset, Item
from dataset_svc.manifest import Manifest, SourceInfo
from dataset_svc.sources import Reading, Shape, read_conversations
from dataset_svc.sources.files import SourceFile
from dataset_svc.sources.neutral import Neutral
from dataset_svc.sources.record import Record, bad_source
from dataset_svc.split import Splitter
from dataset_svc.statistics import Gatherer, Statistics
from dataset_svc.store import Writer

_BLOCK = 1 << 20
_PROGRESS_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the work is.

    Attributes:
        phase: `checking` (sources are hashed), `reading` or `writing`.
        bytes_read: of the sources, of `bytes_total`.
        read: conversations read. kept: conversations kept.
    """

    phase: str
    bytes_read: int = 0
    bytes_total: int = 0
    read: int = 0
    kept: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be made.

    Attributes:
        dataset_id: id of the dataset.
        files: path and shown name of each source.
        dataset_class: name of the class.
        rules: the class with its parameters.
        seed: of the split. test_fraction: share held back.
        limit: read at most so many conversations; 0 for all.
        request_id: of the call. labels: free labels.
    """

    dataset_id: str
    files: tuple[tuple[Path, str], ...]
    dataset_class: str
    rules: ConversationDataset
    seed: int = 0
    test_fraction: float = 0.1
    limit: int = 0
    request_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Result:
    """What a run made: the manifest, which the writer completes, and the statistics."""

    draft: Manifest
    statistics: Statistics


class Meter:
    """Passes progress on, no more often than people can read it, and asks on each call whether to go on.

    Args:
        report: takes progress.
        check: raises `Cancelled` when the work is no longer wanted.
    """

    def __init__(self, report: Callable[[Progress], None], check: Callable[[], None]) -> None:
        self._report = report
        self._check = check
        self._next = 0.0
        self._phase = ""

    def __call__(self, progress: Progress) -> None:
        """Progress as of now."""
        self._check()
        now = time.monotonic()
        if progress.phase != self._phase or now >= self._next:
            self._next, self._phase = now + _PROGRESS_SECONDS, progress.phase
            self._report(progress)


def fingerprint(plan: Plan, meter: Meter) -> tuple[SourceInfo, ...]:
    """Size and SHA-256 of every source.

    Raises:
        NotFound, PermissionDenied, InvalidArgument: a source can't be read.
    """
    infos = []
    total = sum(path.stat().st_size for path, _ in plan.files if path.is_file())
    done = 0
    for path, shown in plan.files:
        digest = hashlib.sha256()
        # Opening it as a source first gives the errors that say what is wrong with it.
        with SourceFile(path, shown) as file:
            size = file.bytes_total
        with path.open("rb") as raw:
            while block := raw.read(_BLOCK):
                digest.update(block)
                done += len(block)
                meter(Progress("checking", done, total))
        infos.append(SourceInfo(shown, digest.hexdigest(), size, path.stat().st_mtime_ns))
    return tuple(infos)


def run(plan: Plan, sources: tuple[SourceInfo, ...], input_digest: str, writer: Writer, meter: Meter) -> Result:
    """Read, clean, label and split everything, and hand it to `writer`; publishes nothing.

    Raises:
        InvalidArgument: a source is bad, or nothing is left of it. FailedPrecondition: the client's class failed.
        ResourceExhausted: the disk is full. Cancelled: the meter said so.
    """
    cleaning = Cleaning()
    splitter = Splitter(seed=plan.seed, test_fraction=plan.test_fraction)
    gatherer = Gatherer()
    read: list[SourceInfo] = []
    total = sum(source.bytes for source in sources)
    done = count = 0
    for (path, shown), info in zip(plan.files, sources, strict=True):
        reading = Reading(shown)
        for conversation, reading in _limited(path, shown, plan, count):
            count += 1
            gatherer.empty_messages += sum(message.empty for message in conversation.messages)
            kept = cleaning(conversation)
            if kept is not None:
                item = _item(plan.rules, kept, writer, splitter, cleaning.report)
                gatherer.add(item)
                _store(writer, item)
            meter(Progress("reading", done + reading.bytes_read, total, count, writer.rows))
        _check_unchanged(path, info)
        done += info.bytes
        read.append(replace(info, format=reading.shape, conversations=reading.conversations))
    if not writer.rows:
        raise _nothing_left(sources, cleaning.report)
    meter(Progress("writing", total, total, count, writer.rows))
    draft = Manifest(
        id=plan.dataset_id,
        dataset_class=plan.dataset_class,
        parameters=asdict(plan.rules.parameters),
        sources=tuple(read),
        input_digest=input_digest,
        digest="",
        split_seed=plan.seed,
        test_fraction=plan.test_fraction,
        limit=plan.limit,
        rows=0,
        splits={},
        languages=(),
        shards=(),
        near_duplicates=splitter.near_duplicates,
        cleaning=cleaning.report,
        create_time=time.time(),
        request_id=plan.request_id,
        labels=plan.labels,
    )
    return Result(draft, gatherer.result())


class _OwnFormat:
    """The format of a client's log, which its dataset class reads."""

    def __init__(self, rules: ConversationDataset, name: str) -> None:
        self.name = name
        self._rules = rules
        self._neutral = Neutral()

    def matches(self, data: Any) -> bool:
        return isinstance(data, dict)

    def parse(self, record: Record) -> Conversation:
        try:
            neutral = self._rules.read(record.data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise bad_source(
                record.place,
                f"the dataset class {self.name} can't read this record ({type(error).__name__}: {error})",
                "Mend the record or the class",
                kind="NOT_A_CONVERSATION",
            ) from error
        if not isinstance(neutral, Mapping) or not isinstance(neutral.get("messages"), list):
            raise FailedPrecondition(
                f"{type(self._rules).__name__}.read answered no object with `messages` for {record.place}. "
                "Mend the class.",
                reason="DATASET_CLASS_FAILED",
            )
        return self._neutral.parse(Record(record.place, neutral, record.key))


def _limited(path: Path, shown: str, plan: Plan, count: int) -> Iterator[tuple[Conversation, Reading]]:
    own: Shape | None = _OwnFormat(plan.rules, plan.dataset_class) if plan.rules.reads_own_format() else None
    left = plan.limit - count if plan.limit else None
    return itertools.islice(read_conversations(path, shown, own=own), left)


def _item(
    rules: ConversationDataset, conversation: Conversation, writer: Writer, splitter: Splitter, report: Report
) -> Item:
    unique = writer.unique_id(conversation.id)
    if unique != conversation.id:
        report.change("ids", "gave another id, because an earlier conversation has the same", conversation.place)
        conversation = replace(conversation, id=unique)
    item = rules.item(conversation)
    if item.messages != conversation.messages:
        report.change("handover", "added the call of transfer_to_human that the log lacks", conversation.place)
    return replace(item, split=splitter(conversation))


def _check_unchanged(path: Path, info: SourceInfo) -> None:
    now = path.stat()
    if (now.st_size, now.st_mtime_ns) != (info.bytes, info.modified):
        raise Aborted(
            f"{info.path} was changed while it was being read, so nothing was kept. Start again when it is complete.",
            reason="SOURCE_CHANGED",
            metadata={"file": info.path},
        )


def _store(writer: Writer, item: Item) -> None:
    try:
        writer.add(item)
    except (RecursionError, TypeError, ValueError) as error:
        place = item.conversation.place
        raise bad_source(place, f"can't be stored ({error})", "Mend this record", kind="BAD_CONVERSATION") from error


def _nothing_left(sources: tuple[SourceInfo, ...], report: Report) -> InvalidArgument:
    why = "; ".join(f"{tally.count} by {step} ({reason})" for (step, reason), tally in report.dropped.items())
    shown = ", ".join(source.path for source in sources)
    return InvalidArgument(
        f"{shown}: no conversation is left after cleaning: {why or 'none was read'}. Look at the file's first lines.",
        reason="SOURCE_INVALID",
        metadata={"problem": "NOTHING_LEFT", "file": shown},
    )
