"""The dataset service over a real server."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import resource
import threading
from pathlib import Path

import pytest

from chatmill.common.v1 import message_pb2
from chatmill.dataset import v1
from chatmill.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    ChatmillError,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from dataset_svc import build as building
from dataset_svc import store

from .conftest import Mesh, conversation, create, write


async def test_create_streams_progress_and_ends_with_the_dataset(mesh: Mesh) -> None:
    read, admin, data = mesh
    source = write(data / "a.jsonl", [conversation(i) for i in range(200)])
    events = await create(admin, dataset_id="shop", source=source, labels={"team": "a"})
    assert [e.WhichOneof("event") for e in events[:-1]] == ["progress"] * (len(events) - 1)
    assert events[0].progress.phase == "waiting"
    assert {e.progress.phase for e in events[1:-1]} >= {"checking", "reading", "writing"}
    made = events[-1].finished
    assert not made.unchanged
    assert made.dataset.name == "datasets/shop"
    assert sum(s.item_count for s in made.dataset.splits) == 200
    assert made.dataset.source_format == "neutral"
    assert len(made.dataset.digest) == len(made.dataset.source_sha256) == 64
    assert dict(made.dataset.labels) == {"team": "a"}
    assert made.dataset.sources[0].conversation_count == 200
    again = await create(admin, dataset_id="shop", source=source)
    assert again[-1].finished.unchanged
    assert again[-1].finished.dataset.digest == made.dataset.digest
    got = await read.GetDataset(v1.GetDatasetRequest(name="datasets/shop"))
    assert got.dataset == made.dataset


async def test_items_by_name_by_index_and_streamed(mesh: Mesh) -> None:
    read, admin, data = mesh
    rows = [
        conversation(i, context={"facts": [f"Customer {i}.", [1, "Asked before."]]}, annotations={"label": "delivery"})
        for i in range(50)
    ]
    await create(admin, dataset_id="shop", source=write(data / "a.jsonl", rows), test_fraction=0.3)
    first = (await read.GetItem(v1.GetItemRequest(name="datasets/shop", index=0))).item
    assert first.name == "datasets/shop/items/c-0"
    assert first.source_id == "C_0"
    assert [m.role for m in first.messages] == [message_pb2.ROLE_USER, message_pb2.ROLE_ASSISTANT]
    assert list(first.facts) == ["Customer 0."]
    assert first.label == "delivery"
    assert not first.HasField("human_intervention_idx")
    assert (await read.GetItem(v1.GetItemRequest(name=first.name))).item == first

    async def stream(**fields: object) -> list[v1.Item]:
        found = []
        async for response in read.StreamItems(v1.StreamItemsRequest(dataset="datasets/shop", **fields)):
            found.extend(response.items)
        return found

    everything = await stream()
    assert [i.index for i in everything] == list(range(50))
    train, test = await stream(split=v1.SPLIT_TRAIN), await stream(split=v1.SPLIT_TEST)
    assert len(train) + len(test) == 50
    assert len(test) > 3
    assert {i.split for i in test} == {v1.SPLIT_TEST}
    assert await stream(split=v1.SPLIT_TRAIN, start_index=train[4].index + 1) == train[5:]
    assert await stream(limit=3) == everything[:3]
    assert await stream(languages=["en"]) == everything
    assert await stream(languages=["zh"]) == []

    context = await read.GetContext(v1.GetContextRequest(item=first.name, turn=1))
    assert [m.content for m in context.messages] == [first.messages[0].content]
    assert list(context.facts) == ["Customer 0.", "Asked before."]
    with pytest.raises(InvalidArgument, match="between 0 and 2"):
        await read.GetContext(v1.GetContextRequest(item=first.name, turn=3))


async def test_batches_stay_below_a_mebibyte(mesh: Mesh) -> None:
    read, admin, data = mesh
    rows = [
        {"messages": [{"role": "customer", "content": f"你好{i}" * 8000}, {"role": "agent", "content": "好"}]}
        for i in range(60)
    ]
    await create(admin, dataset_id="long", source=write(data / "a.jsonl", rows))
    sizes = [r.ByteSize() async for r in read.StreamItems(v1.StreamItemsRequest(dataset="datasets/long"))]
    assert len(sizes) > 1
    assert max(sizes) < 1 << 20


async def test_handover_reaches_the_wire(mesh: Mesh) -> None:
    read, admin, data = mesh
    row = {
        "id": "h",
        "messages": [
            {"role": "customer", "content": "This is the third time. I am furious."},
            {"role": "agent", "content": "I am sorry. A colleague takes over."},
            {
                "role": "action",
                "name": "transfer_to_human",
                "kind": "call",
                "content": 'call transfer_to_human {"reason": "complaint"}',
                "data": {"reason": "complaint"},
            },
            {"role": "agent", "content": "Hello, this is Ben."},
        ],
    }
    await create(admin, dataset_id="shop", source=write(data / "a.jsonl", [row]))
    item = (await read.GetItem(v1.GetItemRequest(name="datasets/shop/items/h"))).item
    assert item.human_intervention_idx == 1
    assert item.human_intervention_reason == "complaint"
    assert item.messages[1].content == "I am sorry. A colleague takes over."
    call = item.messages[1].tool_calls[0]
    assert (call.name, json.loads(call.arguments_json)) == ("transfer_to_human", {"reason": "complaint"})
    assert item.messages[2].content == "Hello, this is Ben."


async def test_statistics_classes_and_pages(mesh: Mesh) -> None:
    read, admin, data = mesh
    rows = [conversation(i) for i in range(20)] + [conversation(3), {"messages": []}]
    for name in ("b", "a", "c"):
        await create(admin, dataset_id=name, source=write(data / f"{name}.jsonl", rows))
    found = (await read.GetStatistics(v1.GetStatisticsRequest(dataset="datasets/a"))).statistics
    assert found.item_count == 20
    assert found.turns.p50 == found.turns.max == 2
    assert {(d.step, d.count) for d in found.drops} == {("duplicates", 1), ("empty", 1)}
    assert found.drops[0].examples[0].endswith("a.jsonl:21")
    classes = (await read.ListDatasetClasses(v1.ListDatasetClassesRequest())).dataset_classes
    plain = next(c for c in classes if c.class_name == "conversations")
    assert "Handover" in plain.criteria
    assert {p.name: p.default_json for p in plain.parameters} == {"label_key": "null", "handover_tool": "null"}
    assert all(p.description and p.type for p in plain.parameters)
    page = await read.ListDatasets(v1.ListDatasetsRequest(page_size=2))
    assert [d.name for d in page.datasets] == ["datasets/a", "datasets/b"]
    rest = await read.ListDatasets(v1.ListDatasetsRequest(page_size=2, page_token=page.next_page_token))
    assert [d.name for d in rest.datasets] == ["datasets/c"]
    assert rest.next_page_token == ""
    with pytest.raises(InvalidArgument, match="page_token"):
        await read.ListDatasets(v1.ListDatasetsRequest(page_token="nonsense"))
    await admin.DeleteDataset(v1.DeleteDatasetRequest(name="datasets/b"))
    assert len((await read.ListDatasets(v1.ListDatasetsRequest())).datasets) == 2
    with pytest.raises(NotFound):
        await admin.DeleteDataset(v1.DeleteDatasetRequest(name="datasets/b"))
    await admin.DeleteDataset(v1.DeleteDatasetRequest(name="datasets/b", allow_missing=True))


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"source": "{data}/none.jsonl"}, NotFound, "none.jsonl: no such file"),
        ({"source": "/etc/hostname"}, PermissionDenied, "dataset.roots"),
        ({"source": "{data}/../home"}, PermissionDenied, "dataset.roots"),
        ({"source": "{data}/link"}, PermissionDenied, "dataset.roots"),
        ({"source": "{data}/ok.jsonl", "dataset_class": "conversation"}, NotFound, "did you mean 'conversations'"),
        ({"source": "{data}/ok.jsonl", "dataset_id": "Bad Id"}, InvalidArgument, "dataset_id"),
        ({"source": "{data}/ok.jsonl", "test_fraction": 1.5}, InvalidArgument, "test_fraction"),
        ({"source": "{data}/ok.jsonl", "limit": -1}, InvalidArgument, "limit"),
        ({"source": ""}, InvalidArgument, "source"),
        ({"source": "{data}/empty"}, InvalidArgument, "empty: is empty"),
        ({"source": "\0"}, InvalidArgument, "^source: must be"),
        ({"source": "{data}/" + "x" * 20_000}, InvalidArgument, "^source: is longer than"),
        ({"source": "{data}/" + "x/" * 10_000}, InvalidArgument, "^source: is longer than"),
        (
            {"source": "{data}/ok.jsonl", "more_sources": ["{data}/" + "x" * 20_000]},
            InvalidArgument,
            r"^more_sources\[0\]: is longer than",
        ),
    ],
)
async def test_bad_requests_get_one_clear_line(
    mesh: Mesh, fields: dict[str, object], kind: type[ChatmillError], message: str
) -> None:
    read, admin, data = mesh
    write(data / "ok.jsonl", [conversation(1)])
    (data / "empty").touch()
    (data / "link").symlink_to("/etc/hostname")
    fields = {"dataset_id": "new", **fields, "source": str(fields["source"]).replace("{data}", str(data))}
    if "more_sources" in fields:
        fields["more_sources"] = [path.replace("{data}", str(data)) for path in fields["more_sources"]]
    with pytest.raises(kind, match=message) as caught:
        await create(admin, **fields)
    assert "\n" not in caught.value.message
    assert not (await read.ListDatasets(v1.ListDatasetsRequest())).datasets


async def test_names_of_items_and_datasets_are_checked(mesh: Mesh) -> None:
    read, admin, data = mesh
    await create(admin, dataset_id="a", source=write(data / "a", [conversation(1)]))
    for name in ("a", "datasets/../x", "datasets/a/items/", "datasets/a/items/c-1/x"):
        with pytest.raises((InvalidArgument, NotFound)):
            await read.GetItem(v1.GetItemRequest(name=name))
    for request in (
        v1.GetItemRequest(name="datasets/a/items/none"),
        v1.GetItemRequest(name="datasets/a", index=1),
        v1.GetItemRequest(name="datasets/a", index=-1),
        v1.GetItemRequest(name="datasets/none", index=0),
    ):
        with pytest.raises(NotFound):
            await read.GetItem(request)


async def test_existing_data_are_kept_unless_replaced(mesh: Mesh) -> None:
    read, admin, data = mesh
    old = write(data / "old", [conversation(1), conversation(2)])
    new = write(data / "new", [conversation(3)])
    await create(admin, dataset_id="a", source=old)
    with pytest.raises(AlreadyExists, match="other data"):
        await create(admin, dataset_id="a", source=new)
    with pytest.raises(InvalidArgument):
        await create(admin, dataset_id="a", source=write(data / "bad", [{"x": 1}]), replace=True)
    stream = read.StreamItems(v1.StreamItemsRequest(dataset="datasets/a"))
    assert [i.source_id async for r in stream for i in r.items] == ["C_1", "C_2"]
    events = await create(admin, dataset_id="a", source=new, replace=True)
    assert not events[-1].finished.unchanged
    assert (await read.GetItem(v1.GetItemRequest(name="datasets/a", index=0))).item.source_id == "C_3"
    forced = await create(admin, dataset_id="a", source=new, force=True)
    assert not forced[-1].finished.unchanged
    assert forced[-1].finished.dataset.digest == events[-1].finished.dataset.digest
    with pytest.raises(AlreadyExists, match="test_fraction"):
        await create(admin, dataset_id="a", source=new, force=True, test_fraction=0.5)


async def test_leaving_the_stream_stops_the_work_and_leaves_nothing(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read, admin, data = mesh
    reached, rows = threading.Event(), 0
    real = store.Writer.add

    def slow(self: store.Writer, item: object) -> None:
        nonlocal rows
        rows += 1
        reached.set()
        threading.Event().wait(0.01)
        real(self, item)  # type: ignore[arg-type]

    monkeypatch.setattr(store.Writer, "add", slow)
    source = write(data / "a", [conversation(i) for i in range(3000)])
    call = admin.CreateDataset(v1.CreateDatasetRequest(dataset_id="a", source=source))
    await call.read()
    await asyncio.to_thread(reached.wait, 10)
    with pytest.raises(Aborted, match="another call"):
        await create(admin, dataset_id="a", source=source)
    call.cancel()
    with pytest.raises((Cancelled, asyncio.CancelledError)):
        await call.read()
    for _ in range(500):  # the other end notices the cancel a moment later
        if not list((tmp_path / "home" / "datasets").iterdir()):
            break
        await asyncio.sleep(0.01)
    assert not list((tmp_path / "home" / "datasets").iterdir())
    assert rows < 3000
    assert not (await read.ListDatasets(v1.ListDatasetsRequest())).datasets
    monkeypatch.setattr(store.Writer, "add", real)
    assert (await create(admin, dataset_id="a", source=source))[-1].HasField("finished")


@pytest.mark.parametrize("when", ["writing", "publishing"])
async def test_a_full_disk_harms_nothing(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str
) -> None:
    read, admin, data = mesh
    await create(admin, dataset_id="a", source=write(data / "a", [conversation(1)]))
    source = write(data / "b", [conversation(i) for i in range(300)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if when == "writing":  # the system itself refuses to let any file grow further
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    else:
        monkeypatch.setattr(store.os, "fsync", full)
    try:
        for fields in ({"dataset_id": "b"}, {"dataset_id": "a", "replace": True}):
            with pytest.raises(ResourceExhausted, match="disk is full") as caught:
                await create(admin, source=source, **fields)
            assert caught.value.reason == "DISK_FULL"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in (tmp_path / "home" / "datasets").iterdir()] == ["a"]
    assert (await read.GetItem(v1.GetItemRequest(name="datasets/a", index=0))).item.source_id == "C_1"


def full(_: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


async def test_the_loop_stays_free_while_a_dataset_is_made(mesh: Mesh, monkeypatch: pytest.MonkeyPatch) -> None:
    read, admin, data = mesh
    gate = threading.Event()
    real = building.fingerprint

    def held(*arguments: object) -> object:
        gate.wait(20)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "fingerprint", held)
    creating = asyncio.create_task(create(admin, dataset_id="a", source=write(data / "a", [conversation(1)])))
    await read.ListDatasets(v1.ListDatasetsRequest(), timeout=5)
    assert not creating.done()
    gate.set()
    assert (await creating)[-1].HasField("finished")


async def test_gzip_and_more_sources(mesh: Mesh) -> None:
    read, admin, data = mesh
    first = write(data / "a", [conversation(1)])
    (data / "b.gz").write_bytes(gzip.compress(json.dumps([conversation(1), conversation(2)]).encode()))
    events = await create(admin, dataset_id="a", source=first, more_sources=[str(data / "b.gz")])
    made = events[-1].finished.dataset
    assert [s.conversation_count for s in made.sources] == [1, 2]
    assert [(d.step, d.count) for d in made.drops] == [("duplicates", 1)]
    assert (await read.GetItem(v1.GetItemRequest(name="datasets/a", index=1))).item.place.endswith("b.gz:1")
