"""The two gRPC services over a real channel, with a dataset service of the test's own."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp

from chatmill.common.v1 import JOB_STATE_QUEUED, JOB_STATE_SUCCEEDED, ROLE_ASSISTANT, ROLE_USER, Message
from chatmill.dataset.v1 import (
    SPLIT_TEST,
    SPLIT_TRAIN,
    Dataset,
    DatasetServiceServicer,
    GetDatasetRequest,
    GetDatasetResponse,
    Item,
    SplitSize,
    StreamItemsRequest,
    StreamItemsResponse,
    add_DatasetServiceServicer_to_server,
)
from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from chatmill.factory.v1 import (
    MODEL_KIND_BASE,
    MODEL_KIND_PROMPT,
    CancelTrainingJobRequest,
    EvaluationRecord,
    FactoryServiceStub,
    GetModelRequest,
    GetTrainingJobRequest,
    ListModelsRequest,
    ListTrainingJobsRequest,
    ListTrainingMethodsRequest,
    ModelSource,
    RecordEvaluationRequest,
    RegisterModelRequest,
    RegistryServiceStub,
    SetAliasRequest,
    TrainingSpec,
    TrainRequest,
    WatchModelsRequest,
    WatchTrainingJobRequest,
)
from chatmill.runtime import server, testing
from factory_svc import __main__ as main
from factory_svc import shipped

from .conftest import SYSTEM, conversations


class Datasets(DatasetServiceServicer):
    """`datasets/shop` with a dozen items in the training split; `datasets/held` has all of them held back."""

    async def GetDataset(self, request: GetDatasetRequest, context: Any) -> GetDatasetResponse:
        sizes = {"datasets/shop": {SPLIT_TRAIN: 12, SPLIT_TEST: 3}, "datasets/held": {SPLIT_TEST: 3}}
        if request.name not in sizes:
            raise NotFound(f"There is no dataset {request.name}.")
        splits = [SplitSize(split=s, item_count=n) for s, n in sizes[request.name].items()]
        return GetDatasetResponse(dataset=Dataset(name=request.name, digest="abc", splits=splits))

    async def StreamItems(self, request: StreamItemsRequest, context: Any) -> AsyncIterator[StreamItemsResponse]:
        assert request.split == SPLIT_TRAIN
        for index, messages in enumerate(conversations(12)):
            roles = {"user": ROLE_USER, "assistant": ROLE_ASSISTANT}
            said = [Message(role=roles[m["role"]], content=m["content"]) for m in messages[1:]]
            yield StreamItemsResponse(items=[Item(name=f"{request.dataset}/items/{index}", index=index, messages=said)])


@dataclass
class Mesh:
    """Stubs of a running factory."""

    jobs: FactoryServiceStub
    models: RegistryServiceStub


@pytest.fixture
async def mesh(tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    bases = tmp_path / "shipped"
    shutil.copytree(base, bases / "mini")
    (bases / "mini" / "entry.yaml").write_text("license: Apache-2.0\n")
    monkeypatch.setattr(main, "shipped_entries", lambda: shipped.shipped_entries(bases))
    async with AsyncExitStack() as stack:
        local = testing.local_config(tmp_path / "home", {"factory.roots": str(base.parent)})
        datasets = server.Service("dataset", [(add_DatasetServiceServicer_to_server, Datasets())])
        target = (await stack.enter_async_context(testing.running(datasets, local))).running.target
        config = testing.local_config(
            tmp_path / "home", {"factory.roots": str(base.parent), "mesh.peers.dataset": target}
        )
        harness = await stack.enter_async_context(testing.running(await main.build(config), config))
        yield Mesh(FactoryServiceStub(harness.channel), RegistryServiceStub(harness.channel))


def _spec(**changes: Any) -> TrainingSpec:
    fields = {"base": "models/mini", "dataset": "datasets/shop", "model_id": "shop", "method": "prompt"}
    return TrainingSpec(**{**fields, "system_prompt": SYSTEM, **changes})


async def test_train_streams_the_job_and_then_its_events_to_the_end(mesh: Mesh) -> None:
    spec = _spec(labels={"team": "care"}, seed=3)
    spec.parameters.update({"examples": 2})
    answers = [a async for a in mesh.jobs.Train(TrainRequest(spec=spec, request_id="r1"))]
    job = answers[0].training_job
    assert job.name.startswith("trainingJobs/shop-")
    assert job.state == JOB_STATE_QUEUED
    assert job.spec == spec
    assert [a.event.sequence for a in answers[1:]] == list(range(1, len(answers)))
    finished = answers[-1].event.finished
    assert finished.state == JOB_STATE_SUCCEEDED
    assert finished.model == "models/shop/versions/1"
    assert finished.end_time.seconds >= finished.start_time.seconds > 0

    got = (await mesh.jobs.GetTrainingJob(GetTrainingJobRequest(name=job.name))).training_job
    assert got == finished
    again = [a async for a in mesh.jobs.Train(TrainRequest(spec=spec, request_id="r1"))]
    assert again[0].training_job.name == job.name
    assert [a.event for a in again[1:]] == [a.event for a in answers[1:]]
    watched = mesh.jobs.WatchTrainingJob(WatchTrainingJobRequest(name=job.name, after_sequence=2))
    assert [w.event async for w in watched] == [a.event for a in answers[3:]]

    model = (await mesh.models.GetModel(GetModelRequest(name="models/shop"))).model
    assert model.kind == MODEL_KIND_PROMPT
    assert model.base == "models/mini/versions/1"
    assert model.conversation.system_prompt == SYSTEM
    assert 1 <= len(model.conversation.examples) <= 2
    assert model.data.item_count == 12
    assert model.training.training_job == job.name
    assert dict(model.training.parameters)["examples"] == 2
    assert dict(model.labels) == {"team": "care"}


async def test_a_wrong_request_names_the_field(mesh: Mesh) -> None:
    spec = _spec()
    spec.parameters.update({"examples": -1, "exampels": 3})
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=spec))))
    assert [v.field for v in caught.value.violations] == ["spec.parameters.exampels"]
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=TrainingSpec(base="x")))))
    assert {v.field for v in caught.value.violations} == {"spec.dataset", "spec.model_id", "spec.method"}


@pytest.mark.parametrize("name", ["tokenizer", "weights"])
async def test_a_folder_that_a_parameter_names_lies_under_the_roots(mesh: Mesh, name: str) -> None:
    spec = _spec(method="scratch", base="")
    spec.parameters.Clear()
    spec.parameters.update({name: "/etc"})
    with pytest.raises(PermissionDenied, match=r"factory\.roots"):
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=spec))))
    spec.parameters.update({name: "here"})
    with pytest.raises(InvalidArgument, match="absolute"):
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=spec))))


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"method": "lara"}, NotFound, "did you mean 'lora'"),
        ({"base": "models/minni"}, NotFound, "did you mean 'mini'"),
        ({"base": "/etc"}, PermissionDenied, r"factory\.roots"),
        ({"dataset": "datasets/none"}, NotFound, "no dataset datasets/none"),
        ({"dataset": "datasets/held"}, FailedPrecondition, "training split"),
    ],
)
async def test_what_does_not_exist_is_named(
    mesh: Mesh, changes: dict[str, str], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=_spec(**changes)))))


async def test_jobs_are_listed_in_pages(mesh: Mesh) -> None:
    for _ in range(3):
        async for _answer in mesh.jobs.Train(TrainRequest(spec=_spec())):
            pass
    first = await mesh.jobs.ListTrainingJobs(ListTrainingJobsRequest(page_size=2))
    rest = await mesh.jobs.ListTrainingJobs(ListTrainingJobsRequest(page_size=2, page_token=first.next_page_token))
    models = [job.model.rpartition("/")[2] for page in (first, rest) for job in page.training_jobs]
    assert models == ["3", "2", "1"]
    assert rest.next_page_token == ""
    wrong = ListTrainingJobsRequest(page_token=first.next_page_token, state=JOB_STATE_SUCCEEDED)
    with pytest.raises(InvalidArgument, match="page_token"):
        await mesh.jobs.ListTrainingJobs(wrong)
    with pytest.raises(FailedPrecondition, match="has ended already"):
        await mesh.jobs.CancelTrainingJob(CancelTrainingJobRequest(name=first.training_jobs[0].name))
    for name in ("trainingJobs/none", "jobs/x"):
        with pytest.raises((NotFound, InvalidArgument)):
            await mesh.jobs.GetTrainingJob(GetTrainingJobRequest(name=name))


async def test_methods_are_listed_with_their_parameters(mesh: Mesh) -> None:
    methods = (await mesh.jobs.ListTrainingMethods(ListTrainingMethodsRequest())).training_methods
    assert [m.method for m in methods] == ["lora", "prompt", "qlora", "scratch"]
    lora = {p.name: p for p in methods[0].parameters}
    assert lora["rank"].default_json == "16"
    assert lora["rank"].type == "int"
    assert "at least 1" in lora["rank"].description
    assert lora["scheduler"].default_json == '"cosine"'
    assert all(p.description for m in methods for p in m.parameters)


async def test_a_watcher_sees_the_registry_and_then_each_change(mesh: Mesh, base: Path) -> None:
    watch = aiter(mesh.models.WatchModels(WatchModelsRequest()))
    first = await anext(watch)
    assert first.snapshot
    assert [m.name for m in first.models] == ["models/mini/versions/1"]

    source = ModelSource(folder=str(base))
    registered = await mesh.models.RegisterModel(RegisterModelRequest(source=source, model_id="mine", license="MIT"))
    assert not registered.unchanged
    assert registered.model.kind == MODEL_KIND_BASE
    change = await anext(watch)
    assert not change.snapshot
    assert change.registry_revision > first.registry_revision
    assert list(change.models) == [registered.model]
    again = await mesh.models.RegisterModel(RegisterModelRequest(source=source, model_id="mine", license="MIT"))
    assert again.unchanged

    name = registered.model.name
    moved = await mesh.models.SetAlias(SetAliasRequest(model=name, alias="production", reason="first"))
    assert moved.previous == ""
    assert list((await anext(watch)).models[0].aliases) == ["production"]
    record = EvaluationRecord(evaluation="evaluations/1", pass_rate=0.9, gate_passed=True)
    scored = await mesh.models.RecordEvaluation(RecordEvaluationRequest(model=name, record=record))
    assert list(scored.model.evaluations) == [record]
    assert (await anext(watch)).models[0] == scored.model
    by_alias = await mesh.models.GetModel(GetModelRequest(name="models/mine/aliases/production"))
    assert by_alias.model == scored.model


async def test_models_are_listed_in_pages(mesh: Mesh, base: Path) -> None:
    await mesh.models.RegisterModel(RegisterModelRequest(source=ModelSource(folder=str(base)), model_id="mine"))
    first = await mesh.models.ListModels(ListModelsRequest(page_size=1))
    second = await mesh.models.ListModels(ListModelsRequest(page_size=1, page_token=first.next_page_token))
    assert [p.models[0].name for p in (first, second)] == ["models/mine/versions/1", "models/mini/versions/1"]
    assert second.next_page_token == ""
    only = await mesh.models.ListModels(ListModelsRequest(parent="models/mini"))
    assert [m.name for m in only.models] == ["models/mini/versions/1"]


async def test_a_source_without_a_place_is_refused(mesh: Mesh) -> None:
    with pytest.raises(InvalidArgument, match="must name a folder"):
        await mesh.models.RegisterModel(RegisterModelRequest(source=ModelSource(revision="x"), model_id="m"))


@pytest.mark.parametrize("state", [99, -1])
async def test_jobs_of_a_state_that_is_none_are_refused(mesh: Mesh, state: int) -> None:
    request = ListTrainingJobsRequest()
    request.state = state  # type: ignore[assignment]
    with pytest.raises(InvalidArgument) as caught:
        await mesh.jobs.ListTrainingJobs(request)
    assert [v.field for v in caught.value.violations] == ["state"]


@pytest.mark.parametrize("value", [float("inf"), [float("nan")], {"x": [float("-inf")]}])
async def test_parameters_are_finite(mesh: Mesh, value: Any) -> None:
    parameters = Struct()
    parameters.update({"examples": value})
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=_spec(parameters=parameters)))))
    assert [v.field for v in caught.value.violations] == ["spec.parameters"]


@pytest.mark.parametrize("path", ["\0", "x" * 20_000, "{roots}/" + "x/" * 10_000, "~nobody-of-this-name/x"])
async def test_a_path_that_can_not_be_is_refused(mesh: Mesh, base: Path, path: str) -> None:
    path = path.replace("{roots}", str(base.parent))
    with pytest.raises(InvalidArgument) as caught:
        await mesh.models.RegisterModel(RegisterModelRequest(source=ModelSource(folder=path)))
    assert [v.field for v in caught.value.violations] == ["source.folder"]
    assert len(caught.value.message) < 200
    with pytest.raises(InvalidArgument) as caught:
        await anext(aiter(mesh.jobs.Train(TrainRequest(spec=_spec(base=path)))))
    assert [v.field for v in caught.value.violations] == ["spec.base"]


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("ftp://host/v1", "must begin with http://"),
        ("http://", "has no host, or a port"),
        ("http:///v1", "has no host, or a port"),
        ("http://[::bad/v1", "has no host, or a port"),
        ("http://[zz::1]/v1", "has no host, or a port"),
        ("http://127.0.0.1:99999/v1", "has no host, or a port"),
        ("http://127.0.0.1:0/v1", "has no host, or a port"),
        ("http://127.0.0.1:port/v1", "has no host, or a port"),
        ("http://127.0.0.1/v1\r\nX-Inj: y", "line breaks"),
        ("http://127.0.0.1/v 1", "spaces"),
        ("http://host/" + "v" * 2000, "at most 2000 ASCII characters"),
        ("http://user:s3cret@host/v1", r"no user, password, query or fragment.*inference\.remote_key_file"),
        ("http://host/v1?api_key=s3cret", r"no user, password, query or fragment.*inference\.remote_key_file"),
        ("http://host/v1#s3cret", r"no user, password, query or fragment.*inference\.remote_key_file"),
        ("http://user:s3cret@host:99999/v1", "has no host, or a port"),
    ],
)
async def test_a_base_url_that_can_not_be_used_is_refused(mesh: Mesh, url: str, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text) as caught:
        await mesh.models.RegisterModel(RegisterModelRequest(source=ModelSource(base_url=url), model_id="far"))
    assert [v.field for v in caught.value.violations] == ["source.base_url"]
    assert "s3cret" not in caught.value.message
    assert [m.name for m in (await mesh.models.ListModels(ListModelsRequest())).models] == ["models/mini/versions/1"]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000/v1", "https://api.example.com/v1/", "http://[::1]:8000", "http://gpu-box/a%20b/v1"]
)
async def test_an_access_point_is_registered_as_it_is_named(mesh: Mesh, url: str) -> None:
    source = ModelSource(base_url=url, revision="big")
    answer = await mesh.models.RegisterModel(RegisterModelRequest(source=source, model_id="far"))
    assert answer.model.source == source


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"evaluation": ""}, "evaluation"),
        ({"evaluation": "not-a-name"}, "evaluation"),
        ({"evaluation": "evaluations/a/b"}, "evaluation"),
        ({"evaluation": "evaluations/" + "x" * 64}, "evaluation"),
        ({"suite": "s" * 10_000}, "suite"),
        ({"suite_digest": "a\nb"}, "suite_digest"),
        ({"pass_rate": 250.0}, "pass_rate"),
        ({"pass_rate": float("nan")}, "pass_rate"),
        ({"pass_rate_low": -1.0}, "pass_rate_low"),
        ({"pass_rate_high": float("inf")}, "pass_rate_high"),
        ({"pass_rate_low": 0.9, "pass_rate_high": 0.8}, "pass_rate_low"),
        ({"verdict": "x" * 10_000}, "verdict"),
        ({"end_time": Timestamp(seconds=1, nanos=-1)}, "end_time"),
        ({"end_time": Timestamp(seconds=2**63 - 1)}, "end_time"),
    ],
)
async def test_a_score_that_can_not_be_is_not_recorded(mesh: Mesh, changes: dict[str, Any], field: str) -> None:
    record = EvaluationRecord(**{"evaluation": "evaluations/1", "pass_rate": 0.5, **changes})
    with pytest.raises(InvalidArgument) as caught:
        await mesh.models.RecordEvaluation(RecordEvaluationRequest(model="models/mini", record=record))
    assert [v.field for v in caught.value.violations] == [f"record.{field}"]
    assert len(caught.value.message) < 200
    assert not (await mesh.models.GetModel(GetModelRequest(name="models/mini"))).model.evaluations


async def test_errors_name_the_field_that_the_model_stands_in(mesh: Mesh) -> None:
    record = EvaluationRecord(evaluation="evaluations/1", pass_rate=0.5)
    for call in (
        mesh.models.SetAlias(SetAliasRequest(model="mini", alias="production")),
        mesh.models.RecordEvaluation(RecordEvaluationRequest(model="mini", record=record)),
    ):
        with pytest.raises(InvalidArgument, match=r"^model: ") as caught:
            await call
        assert [v.field for v in caught.value.violations] == ["model"]
