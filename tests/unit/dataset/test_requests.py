"""What of a request is checked before any work, and what a request id promises, over a real server."""

from __future__ import annotations

import asyncio
import threading

import pytest
from google.protobuf.struct_pb2 import Struct

from chatmill.dataset import v1
from chatmill.errors import AlreadyExists, InvalidArgument
from dataset_svc import build as building
from dataset_svc import catalog as catalogs

from .conftest import Mesh, conversation, create, write


@pytest.mark.parametrize("value", [float("inf"), [float("inf")], {"x": [float("nan")]}])
async def test_parameters_are_finite(mesh: Mesh, value: object) -> None:
    _, admin, data = mesh
    parameters = Struct()
    parameters.update({"": value})
    with pytest.raises(InvalidArgument) as caught:
        await create(admin, dataset_id="a", source=write(data / "a", [conversation(1)]), parameters=parameters)
    assert [v.field for v in caught.value.violations] == ["parameters"]


async def test_unknown_parameter_names_the_nearest(mesh: Mesh) -> None:
    _, admin, data = mesh
    parameters = Struct()
    parameters.update({"label_keys": "x"})
    with pytest.raises(InvalidArgument, match="did you mean 'label_key'") as caught:
        await create(admin, dataset_id="a", source=write(data / "a", [conversation(1)]), parameters=parameters)
    assert caught.value.violations[0].field == "parameters.label_keys"


async def test_a_tokenizer_is_a_path_to_one(mesh: Mesh) -> None:
    read, admin, data = mesh
    await create(admin, dataset_id="a", source=write(data / "a", [conversation(1)]))
    (data / "other.json").write_text('"tok-4711"')
    for path, text in (
        (str(data / ("x" * 20_000)), "is longer than"),
        (str(data / "other.json"), r"is not a tokenizer\.json \(reading ended at line 1 column \d+\)"),
    ):
        with pytest.raises(InvalidArgument, match=text) as caught:
            await read.GetStatistics(v1.GetStatisticsRequest(dataset="datasets/a", tokenizer=path))
        assert [v.field for v in caught.value.violations] == ["tokenizer"]
        assert "4711" not in caught.value.message


async def test_a_retry_with_its_request_id_gets_the_first_result(mesh: Mesh) -> None:
    read, admin, data = mesh
    source = write(data / "a", [conversation(1)])
    first = await create(admin, dataset_id="a", source=source, request_id="r1")
    (data / "a").write_text("changed since")
    again = await create(admin, dataset_id="a", source=source, request_id="r1")
    assert again[-1].finished.unchanged
    assert again[-1].finished.dataset == first[-1].finished.dataset
    for other in ({"split_seed": 5}, {"labels": {"team": "b"}}, {"dataset_id": "b"}, {"source": str(data / "b")}):
        with pytest.raises(AlreadyExists, match=r"request_id 'r1' .* datasets/a") as caught:
            await create(admin, **{"dataset_id": "a", "source": source, "request_id": "r1", **other})
        assert caught.value.reason == "REQUEST_ID_REUSED"
    assert [d.name for d in (await read.ListDatasets(v1.ListDatasetsRequest())).datasets] == ["datasets/a"]


async def test_calls_with_one_request_id_at_a_time_make_one_dataset(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, admin, data = mesh
    gate, waiting = threading.Event(), threading.Semaphore(0)
    calls = 0
    real = building.fingerprint
    alone = catalogs.Catalog._alone

    def held(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        assert gate.wait(20)
        return real(*arguments)  # type: ignore[arg-type]

    def arriving(*arguments: object) -> object:
        waiting.release()
        return alone(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(building, "fingerprint", held)
    monkeypatch.setattr(catalogs.Catalog, "_alone", arriving)
    source = write(data / "a", [conversation(1)])
    same = [asyncio.create_task(create(admin, dataset_id="a", source=source, request_id="r1")) for _ in range(2)]
    for _ in same:
        assert await asyncio.to_thread(waiting.acquire, timeout=10)
    gate.set()
    ends = [(await task)[-1].finished for task in same]
    assert calls == 1
    assert sorted(end.unchanged for end in ends) == [False, True]
    assert ends[0].dataset == ends[1].dataset
    assert len((await read.ListDatasets(v1.ListDatasetsRequest())).datasets) == 1
