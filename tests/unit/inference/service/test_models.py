"""The models in memory: lazy, within a budget, by revision, following the registry."""

import asyncio
import gc
import hashlib
import weakref
from dataclasses import replace

import pytest
from serving_fakes import FakeArtifacts, FakeEngine, FakeRegistry, until

from chatmill import errors
from inference_svc.artifacts import ArtifactStore
from inference_svc.entries import Catalog, CatalogChange, ModelEntry, ModelFile, ModelKind
from inference_svc.generation import AdapterKey
from inference_svc.models import ModelStore

BASE = ModelEntry("models/base/versions/1", "b1", ModelKind.BASE, files=(ModelFile("w.safetensors", "", 900),))
OTHER = ModelEntry("models/other/versions/1", "o1", ModelKind.BASE, files=(ModelFile("w.safetensors", "", 900),))
ADAPTER = ModelEntry("models/shop/versions/1", "s1", ModelKind.ADAPTER, base=BASE.name, aliases=("production",))
NEWER = ModelEntry("models/shop/versions/2", "s2", ModelKind.ADAPTER, base=BASE.name)
PROMPT = ModelEntry("models/prompt/versions/1", "p1", ModelKind.PROMPT, base=ADAPTER.name)


def store(*entries, budget=None, engine=FakeEngine, **options):
    engines = []

    def make(entry):
        engines.append(engine())
        return "fake", engines[-1]

    models = ModelStore(FakeArtifacts(), make, memory_budget=budget, **options)
    models.apply(CatalogChange(entries, snapshot=True))
    return models, engines


async def test_a_base_its_adapters_and_prompt_models_share_one_engine():
    models, engines = store(BASE, ADAPTER, NEWER, PROMPT)
    leases = [
        await models.acquire(n) for n in ("models/base", "models/shop", "models/prompt", "models/shop/versions/1")
    ]
    assert len(engines) == 1
    assert [lease.adapter for lease in leases] == [
        None,
        AdapterKey(NEWER.name, "s2"),
        AdapterKey(ADAPTER.name, "s1"),
        AdapterKey(ADAPTER.name, "s1"),
    ]
    assert leases[0].resident.leases == 4
    for lease in leases:
        lease.release()
        lease.release()
    assert leases[0].resident.leases == 0
    assert set(leases[0].resident.adapters.values()) == {0}


async def test_the_garbage_collector_passes_over_a_model_in_memory_and_frees_what_it_leaves_behind():
    class Weights:
        def __init__(self):
            self.itself = self

    class Cyclic(FakeEngine):
        async def load_base(self, spec):
            self.weights = Weights()
            return await super().load_base(spec)

        async def close(self):
            del self.weights
            await super().close()

    models, engines = store(BASE, engine=Cyclic)
    (await models.acquire("models/base")).release()
    weights = weakref.ref(engines[0].weights)
    assert not any(type(thing) is Weights for thing in gc.get_objects())
    await models.unload("models/base")
    assert weights() is None


async def test_after_a_load_that_failed_the_garbage_collector_passes_over_models_again(monkeypatch):
    class Broken(FakeEngine):
        async def load_base(self, spec):
            raise errors.FailedPrecondition("is corrupt.", reason="CORRUPT")

    monkeypatch.setattr("inference_svc.models.AFTER_FAILURE", 0.0)
    models, _ = store(BASE, engine=Broken)
    gc.unfreeze()
    with pytest.raises(errors.FailedPrecondition):
        await models.acquire("models/base")
    await until(lambda: gc.get_freeze_count() > 0)


async def test_requests_that_come_together_load_once():
    models, engines = store(BASE)
    await asyncio.gather(*(models.acquire("models/base") for _ in range(10)))
    assert [e.loaded for e in engines] == [1]


async def test_the_least_recently_used_idle_model_makes_room():
    models, engines = store(BASE, OTHER, replace(OTHER, name="models/third/versions/1", revision="t1"), budget=2500)
    first = await models.acquire("models/base")
    (await models.acquire("models/other")).release()
    (await models.acquire("models/third")).release()
    assert [e.closed for e in engines] == [False, True, False]
    third = await models.acquire("models/third")
    with pytest.raises(errors.ResourceExhausted, match="memory_budget_mib"):
        await models.acquire("models/other")
    first.release()
    await models.acquire("models/other")
    assert engines[0].closed
    third.release()


async def test_a_new_revision_under_an_old_name_starts_afresh():
    models, engines = store(BASE, ADAPTER)
    old = await models.acquire("models/shop")
    models.apply(CatalogChange((replace(ADAPTER, revision="s1-again"),)))
    new = await models.acquire("models/shop")
    assert new.adapter != old.adapter
    await asyncio.sleep(0)
    assert list(engines[0].adapters) == [new.adapter]
    models.apply(CatalogChange((replace(BASE, revision="b1-again"), replace(ADAPTER, revision="s1-again"))))
    newest = await models.acquire("models/base")
    assert newest.resident is not new.resident
    old.release()
    assert new.resident.leases == 1


async def test_adapters_come_and_go_with_the_registry():
    models, engines = store(BASE)
    registry = FakeRegistry(BASE)
    following = asyncio.ensure_future(models.follow(registry))
    await models.known.wait()
    with pytest.raises(errors.NotFound):
        await models.acquire("models/shop")
    registry.queue.put_nowait(CatalogChange((ADAPTER,)))
    await until(lambda: len(models.catalog.entries()) == 2)
    (await models.acquire("models/shop/aliases/production")).release()
    registry.queue.put_nowait(CatalogChange((BASE,), snapshot=True))
    await until(lambda: not engines[0].adapters)
    following.cancel()


async def test_only_so_many_adapters_stay():
    adapters = [replace(ADAPTER, name=f"models/a{n}/versions/1", revision=f"r{n}", aliases=()) for n in range(5)]
    models, engines = store(BASE, *adapters, max_adapters=2)
    for entry in adapters:
        (await models.acquire(entry.name)).release()
    assert [k.name for k in engines[0].adapters] == ["models/a3/versions/1", "models/a4/versions/1"]


async def test_what_does_not_fit_its_entry_is_refused():
    class Strict(FakeEngine):
        def __init__(self):
            super().__init__()
            self.info = replace(self.info, template_digest="d1", end_tokens=("<|end|>",))

    models, engines = store(replace(BASE, template_digest="d2"), engine=Strict)
    with pytest.raises(errors.FailedPrecondition, match="chat template") as refused:
        await models.acquire("models/base")
    assert refused.value.reason == "ARTIFACT_MISMATCH"
    assert engines[0].closed
    models, engines = store(replace(BASE, stop_tokens=("<|eot|>",)), engine=Strict)
    with pytest.raises(errors.FailedPrecondition, match="eot"):
        await models.acquire("models/base")
    models, engines = store(BASE, replace(ADAPTER, template_digest="d3"), engine=Strict)
    with pytest.raises(errors.FailedPrecondition, match="models/shop"):
        await models.acquire("models/shop")
    (await models.acquire("models/base")).release()


async def test_broken_chains_of_bases():
    lost = replace(ADAPTER, base="models/gone/versions/1")
    circle = replace(PROMPT, base=PROMPT.name)
    double = replace(NEWER, base=ADAPTER.name)
    for entry, match in ((lost, "models/gone"), (circle, "circle"), (double, "adapter on the adapter")):
        models, _ = store(BASE, ADAPTER, entry)
        with pytest.raises(errors.FailedPrecondition, match=match):
            await models.acquire(entry.name)
        assert models.resident_of(entry) is None


async def test_before_the_registry_is_heard_of():
    models = ModelStore(FakeArtifacts(), lambda entry: ("fake", FakeEngine()))
    with pytest.raises(errors.Unavailable, match="factory"):
        await models.acquire("models/base")


def test_names():
    catalog = Catalog()
    catalog.apply(CatalogChange((BASE, ADAPTER, NEWER, replace(NEWER, name="models/shop/versions/10")), snapshot=True))
    assert catalog.get("models/shop").version == 10
    assert catalog.get("models/shop/versions/2") is NEWER
    assert catalog.get("models/shop/aliases/production") is ADAPTER
    assert [e.version for e in catalog.entries()] == [1, 1, 2, 10]
    for wrong in ("models/shop/versions/3", "models/shop/aliases/x", "models/shopp"):
        with pytest.raises(errors.NotFound, match="did you mean"):
            catalog.get(wrong)
    for bad in ("shop", "models/", "models/shop/versions/x", "datasets/shop"):
        with pytest.raises(errors.InvalidArgument):
            catalog.get(bad)


def files(folder, **contents):
    found = []
    for name, text in contents.items():
        path = folder / name
        path.write_text(text)
        found.append(ModelFile(str(path), hashlib.sha256(text.encode()).hexdigest(), len(text)))
    return tuple(found)


def test_files_are_checked(tmp_path):
    inside, outside = tmp_path / "artifacts" / "m", tmp_path / "outside"
    inside.mkdir(parents=True)
    outside.mkdir()
    artifacts = ArtifactStore(tmp_path / "artifacts")
    good = replace(BASE, files=files(inside, weights="w", config="c"))
    assert artifacts.folder(good) == inside
    relative = replace(good, files=tuple(replace(f, path=f"m/{f.path.rsplit('/', 1)[1]}") for f in good.files))
    assert artifacts.folder(relative) == inside
    with pytest.raises(errors.PermissionDenied, match=r"inference\.roots"):
        artifacts.folder(replace(BASE, files=files(outside, weights="w")))
    assert ArtifactStore(tmp_path / "artifacts", [outside]).folder(replace(BASE, files=files(outside, weights="w")))
    (inside / "link").symlink_to(outside / "weights")
    with pytest.raises(errors.PermissionDenied):
        artifacts.folder(replace(BASE, files=(ModelFile(str(inside / "link"), "0" * 64),)))
    with pytest.raises(errors.PermissionDenied):
        artifacts.folder(replace(BASE, files=(ModelFile("m/../../outside/weights", "0" * 64),)))
    (inside / "weights").write_text("x")
    with pytest.raises(errors.FailedPrecondition, match="changed or damaged"):
        artifacts.folder(good)
    (inside / "weights").unlink()
    with pytest.raises(errors.NotFound, match="Restore"):
        artifacts.folder(good)
    other = tmp_path / "artifacts" / "n"
    other.mkdir()
    with pytest.raises(errors.FailedPrecondition, match="2 folders"):
        artifacts.folder(replace(BASE, files=(*files(inside, config="c"), *files(other, weights="w"))))
