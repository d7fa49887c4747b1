"""Between the contract's messages and the core's dataclasses; the only module that sees both."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from google.protobuf.json_format import MessageToDict, SerializeToJsonError
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from chatmill.common.v1 import message_pb2
from chatmill.dataset.v1 import dataset_pb2, dataset_service_pb2
from chatmill.errors import InvalidArgument
from dataset_svc.build import Progress
from dataset_svc.catalog import DEFAULT_CLASS, DEFAULT_TEST_FRACTION, Created, CreateRequest, InstalledClass, Selection
from dataset_svc.cleaning import Tally
from dataset_svc.conversation import Message
from dataset_svc.dataset import Context, Item
from dataset_svc.language import UNDETERMINED
from dataset_svc.manifest import Manifest
from dataset_svc.statistics import Distribution, Statistics

BATCH_BYTES = 900_000
"""A batch of items stays below this, so that it stays below 1 MiB with what gRPC adds."""

_ROLES = {
    "system": message_pb2.ROLE_SYSTEM,
    "user": message_pb2.ROLE_USER,
    "assistant": message_pb2.ROLE_ASSISTANT,
    "tool": message_pb2.ROLE_TOOL,
}
_SPLITS = {"train": dataset_pb2.SPLIT_TRAIN, "test": dataset_pb2.SPLIT_TEST}
_NAME = re.compile(r"datasets/([^/]+)(?:/items/([^/]+))?")


def dataset_id(name: str, field: str) -> str:
    """The id in `datasets/{dataset}`. Raises InvalidArgument for another name."""
    found = _NAME.fullmatch(name)
    if found is None or found[2]:
        raise InvalidArgument.field(field, f"must be datasets/{{dataset}}, not {name!r}")
    return found[1]


def item_name(name: str, field: str) -> tuple[str, str]:
    """The ids in `datasets/{dataset}/items/{item}`. Raises InvalidArgument for another name."""
    found = _NAME.fullmatch(name)
    if found is None or not found[2]:
        raise InvalidArgument.field(field, f"must be datasets/{{dataset}}/items/{{item}}, not {name!r}")
    return found[1], found[2]


def which_item(request: dataset_service_pb2.GetItemRequest) -> tuple[str, str | int]:
    """Dataset and item of a request, the item by id or by position."""
    if request.HasField("index"):
        return dataset_id(request.name, "name"), request.index
    return item_name(request.name, "name")


def selection(request: dataset_service_pb2.StreamItemsRequest) -> Selection:
    """Which items are wanted."""
    return Selection(
        dataset_id(request.dataset, "dataset"),
        _split(request.split),
        tuple(request.languages),
        request.start_index,
        request.limit,
    )


def _split(value: int) -> str:
    if value == dataset_pb2.SPLIT_UNSPECIFIED:
        return ""
    for name, number in _SPLITS.items():
        if number == value:
            return name
    raise InvalidArgument.field("split", f"{value} is not a split; use SPLIT_TRAIN, SPLIT_TEST or leave it unset")


def create_request(request: dataset_service_pb2.CreateDatasetRequest) -> CreateRequest:
    """What a caller wants made."""
    return CreateRequest(
        dataset_id=request.dataset_id,
        sources=(request.source, *request.more_sources),
        dataset_class=request.dataset_class or DEFAULT_CLASS,
        parameters=_plain(request.parameters),
        test_fraction=request.test_fraction if request.HasField("test_fraction") else DEFAULT_TEST_FRACTION,
        split_seed=request.split_seed,
        limit=request.limit,
        replace=request.replace,
        force=request.force,
        request_id=request.request_id,
        labels=dict(request.labels),
    )


def create_event(event: Progress | Created) -> dataset_service_pb2.CreateDatasetResponse:
    """Progress or the end of the work."""
    if isinstance(event, Created):
        finished = dataset_service_pb2.CreateDatasetFinished(dataset=dataset(event.manifest), unchanged=event.unchanged)
        return dataset_service_pb2.CreateDatasetResponse(finished=finished)
    progress = dataset_service_pb2.CreateDatasetProgress(
        bytes_read=event.bytes_read,
        bytes_total=event.bytes_total,
        read_count=event.read,
        kept_count=event.kept,
        phase=event.phase,
    )
    return dataset_service_pb2.CreateDatasetResponse(progress=progress)


def dataset(about: Manifest) -> dataset_pb2.Dataset:
    """The dataset resource."""
    made = dataset_pb2.Dataset(
        name=f"datasets/{about.id}",
        dataset_class=about.dataset_class,
        source=about.sources[0].path,
        source_sha256=about.source_sha256,
        digest=about.digest,
        splits=_splits(about.splits),
        drops=_counts(about.cleaning.dropped),
        changes=_counts(about.cleaning.changed),
        source_format=",".join(dict.fromkeys(source.format for source in about.sources)),
        parameters=_struct(about.parameters),
        split_seed=about.split_seed,
        test_fraction=about.test_fraction,
        create_time=_timestamp(about.create_time),
        labels=about.labels,
        near_duplicate_count=about.near_duplicates,
    )
    for source in about.sources:
        made.sources.add(
            path=source.path,
            sha256=source.sha256,
            size_bytes=source.bytes,
            format=source.format,
            conversation_count=source.conversations,
        )
    return made


def item(dataset: str, index: int, found: Item) -> dataset_pb2.Item:
    """The item resource."""
    return dataset_pb2.Item(
        name=f"datasets/{dataset}/items/{found.id}",
        index=index,
        messages=messages(found.messages),
        facts=found.known_facts,
        label=found.label,
        human_intervention_idx=found.human_intervention_idx,
        human_intervention_reason=found.handover.reason if found.handover else "",
        language="" if found.language == UNDETERMINED else found.language,
        split=_SPLITS[found.split],
        source_id=found.conversation.source_id,
        place=found.conversation.place,
    )


def batches(dataset: str, items: Iterable[tuple[int, Item]]) -> Iterator[dataset_service_pb2.StreamItemsResponse]:
    """The items with their positions, in messages below `BATCH_BYTES`; an item that is larger by itself goes alone."""
    batch, size = dataset_service_pb2.StreamItemsResponse(), 0
    for index, found in items:
        one = item(dataset, index, found)
        bytes_of_item = one.ByteSize() + 8
        if batch.items and size + bytes_of_item > BATCH_BYTES:
            yield batch
            batch, size = dataset_service_pb2.StreamItemsResponse(), 0
        batch.items.append(one)
        size += bytes_of_item
    if batch.items:
        yield batch


def context(found: Context) -> dataset_service_pb2.GetContextResponse:
    """What the agent knew at a turn."""
    return dataset_service_pb2.GetContextResponse(messages=messages(found.messages), facts=found.facts)


def messages(found: Sequence[Message]) -> list[message_pb2.Message]:
    """Messages of the contract; calls without an id of their own are numbered within their message."""
    return [
        message_pb2.Message(
            role=_ROLES[message.role],
            content=message.content,
            tool_calls=[
                message_pb2.ToolCall(
                    id=call.id or f"call_{number}",
                    name=call.name,
                    arguments_json=json.dumps(call.arguments, ensure_ascii=False),
                )
                for number, call in enumerate(message.tool_calls)
            ],
            tool_call_id=message.call_id,
            tool_name=message.name or "",
        )
        for message in found
    ]


def dataset_class(found: InstalledClass) -> dataset_pb2.DatasetClass:
    """An installed class with its criteria."""
    return dataset_pb2.DatasetClass(
        class_name=found.name,
        criteria=found.criteria,
        parameters=[
            dataset_pb2.ParameterSpec(name=p.name, type=p.type, description=p.description, default_json=p.default_json)
            for p in found.parameters
        ],
    )


def statistics(found: Statistics, about: Manifest) -> dataset_pb2.Statistics:
    """A dataset in numbers."""
    made = dataset_pb2.Statistics(
        item_count=found.items,
        turns=_distribution(found.turns),
        user_characters=_distribution(found.characters.user),
        assistant_characters=_distribution(found.characters.assistant),
        conversation_characters=_distribution(found.characters.conversation),
        languages=_values({"" if k == UNDETERMINED else k: v for k, v in found.languages.items()}),
        labels=_values(found.labels),
        handover_count=found.handovers,
        handover_position=_distribution(found.handover_position),
        not_alternating_count=found.not_alternating,
        ending_on_user_count=found.ending_on_user,
        empty_message_count=found.empty_messages,
        longer_than_characters=_values(found.characters.longer_than),
        splits=_splits(found.splits),
        drops=_counts(about.cleaning.dropped),
        changes=_counts(about.cleaning.changed),
        role_problems=_values(found.role_problems),
        handover_reasons=_values(found.handover_reasons),
        near_duplicate_count=about.near_duplicates,
    )
    if found.tokens:
        made.user_tokens.CopyFrom(_distribution(found.tokens.user))
        made.assistant_tokens.CopyFrom(_distribution(found.tokens.assistant))
        made.conversation_tokens.CopyFrom(_distribution(found.tokens.conversation))
        made.longer_than_tokens.extend(_values(found.tokens.longer_than))
    return made


def _splits(sizes: Mapping[str, int]) -> list[dataset_pb2.SplitSize]:
    return [dataset_pb2.SplitSize(split=number, item_count=sizes.get(name, 0)) for name, number in _SPLITS.items()]


def _counts(tallies: Mapping[tuple[str, str], Tally]) -> list[dataset_pb2.DropCount]:
    return [
        dataset_pb2.DropCount(step=step, reason=reason, count=tally.count, examples=tally.examples)
        for (step, reason), tally in tallies.items()
    ]


def _values(counts: Mapping[str, int]) -> list[dataset_pb2.ValueCount]:
    return [dataset_pb2.ValueCount(value=value, count=count) for value, count in counts.items()]


def _distribution(found: Distribution) -> dataset_pb2.Distribution:
    return dataset_pb2.Distribution(
        count=found.count, mean=found.mean, min=found.min, p50=found.p50, p95=found.p95, max=found.max
    )


def _timestamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(int(seconds * 1e9))
    return made


def _plain(values: Struct) -> dict[str, Any]:
    try:
        return dict(MessageToDict(values))
    except (SerializeToJsonError, ValueError):  # which of the two depends on how deep the value lies
        raise InvalidArgument.field("parameters", "every value must be set, and every number finite") from None


def _struct(values: Mapping[str, Any]) -> Struct:
    made = Struct()
    made.update(values)
    return made
