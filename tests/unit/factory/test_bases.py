"""A base is found by name, folder or hub id, and nothing is read that is not allowed."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from factory_svc.bases import Bases, derived_id
from factory_svc.entry import Artifact, Contract, Entry, Source
from factory_svc.hub import Hub, HubModel
from factory_svc.registry import Registry
from factory_svc.shipped import shipped_entries


class FakeHub(Hub):
    def describe(self, model: str, revision: str | None) -> HubModel:
        if model != "Qwen/Qwen2.5-0.5B-Instruct":
            raise NotFound(f"There is no model {model} on the hub.")
        weights = Artifact(f"hf://{model}@{'c' * 40}/model.safetensors", "1" * 64, 99)
        return HubModel("c" * 40, (weights,), Contract(chat_template_digest="d", max_context=32768), 5, "apache-2.0")


def test_a_folder_becomes_a_version_once(bases: Bases, registry: Registry, base: Path) -> None:
    entry = bases.resolve(str(base))
    assert entry.name == "models/tiny-base/versions/1"
    assert entry.kind == "base"
    assert entry.source == Source("folder", str(base))
    assert entry.conversation.stop_tokens == ("<|end|>",)
    assert entry.parameter_count > 10_000
    assert {Path(a.path).name for a in entry.artifacts} >= {"model.safetensors", "config.json", "tokenizer.json"}
    registry.verify(entry)
    assert bases.resolve(base.name) == entry, "by registry id"
    assert bases.resolve(f"./{base.name}") == entry, "relative to a root"
    assert bases.resolve("models/tiny-base") == entry
    assert bases.location(entry) == (str(base), None)


def test_a_folder_that_changed_becomes_another_version(bases: Bases, base: Path) -> None:
    copy = base.parent / "changing"
    shutil.copytree(base, copy)
    first = bases.resolve(str(copy))
    (copy / "generation_config.json").write_text(json.dumps({"do_sample": True, "top_p": 0.9, "eos_token_id": 1}))
    second = bases.resolve(str(copy))
    shutil.rmtree(copy)
    assert (first.version, second.version) == (1, 2)
    assert second.conversation.sampling_defaults == {"top_p": 0.9}


def test_a_hub_model_is_pinned(registry: Registry) -> None:
    bases = Bases(registry, [], FakeHub())
    entry = bases.resolve("Qwen/Qwen2.5-0.5B-Instruct")
    assert entry.name == "models/qwen2-5-0-5b-instruct/versions/1"
    assert entry.source == Source("hub", "Qwen/Qwen2.5-0.5B-Instruct", "c" * 40)
    assert entry.license == "apache-2.0"
    assert bases.location(entry) == ("Qwen/Qwen2.5-0.5B-Instruct", "c" * 40)
    assert bases.resolve("Qwen/Qwen2.5-0.5B-Instruct@main") == entry
    with pytest.raises(NotFound, match="no model Qwen/Nope"):
        bases.resolve("Qwen/Nope")


def test_a_hub_that_is_away_says_what_to_do(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # and does not listen, so whoever connects is refused
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        with pytest.raises(Unavailable, match="put the model into a folder") as caught:
            Bases(registry, []).resolve("Qwen/Qwen2.5-0.5B-Instruct")
    assert caught.value.retry_after


def test_an_unknown_base_names_the_nearest(bases: Bases, base: Path) -> None:
    bases.resolve(str(base))
    with pytest.raises(NotFound, match="did you mean 'tiny-base'"):
        bases.resolve("tiny-bsae")
    with pytest.raises(NotFound, match="did you mean 'tiny-base'"):
        bases.resolve("models/tiny-bsae")


@pytest.mark.parametrize("name", ["/etc", "../../../etc", "/", "~"])
def test_a_folder_outside_the_roots_is_refused(bases: Bases, name: str) -> None:
    with pytest.raises(PermissionDenied, match=r"factory\.roots") as caught:
        bases.resolve(name)
    assert caught.value.reason == "PATH_NOT_ALLOWED"


def test_a_link_that_leads_out_of_the_roots_is_refused(registry: Registry, base: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(base)
    with pytest.raises(PermissionDenied):
        Bases(registry, [root]).resolve(str(root / "link"))


def test_a_missing_folder_is_named(bases: Bases, base: Path) -> None:
    with pytest.raises(NotFound, match="There is no folder"):
        bases.resolve(str(base.parent / "missing"))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model.safetensors": None}, "NO_WEIGHTS"),
        ({"model.safetensors": None, "pytorch_model.bin": b""}, "PICKLE_WEIGHTS"),
        ({"config.json": None}, "NOT_A_MODEL"),
        ({"chat_template.jinja": None}, "NO_CHAT_TEMPLATE"),
        ({"tokenizer_config.json": b"{"}, "NOT_A_MODEL"),
    ],
)
def test_a_folder_that_is_no_usable_model_says_why(
    bases: Bases, registry: Registry, base: Path, change: dict[str, bytes | None], reason: str
) -> None:
    broken = base.parent / "broken"
    shutil.copytree(base, broken)
    for name, content in change.items():
        if content is None:
            (broken / name).unlink()
        else:
            (broken / name).write_bytes(content)
    try:
        with pytest.raises(FailedPrecondition) as caught:
            bases.resolve(str(broken))
    finally:
        shutil.rmtree(broken)
    assert caught.value.reason == reason
    assert registry.read().entries == {}


def test_an_adapter_is_no_base(bases: Bases, registry: Registry) -> None:
    adapter = registry.add(Entry("a", 0, "adapter", base="models/tiny/versions/1"))
    with pytest.raises(FailedPrecondition, match=r"use its base models/tiny/versions/1\."):
        bases.location(adapter)


def test_a_remote_model_is_registered_with_its_prompt(bases: Bases) -> None:
    source = Source("remote", "https://example.test/v1", "big-model")
    entry, was_there = bases.register(source, system_prompt="Be kind.", license="", description="far away")
    assert (entry.name, was_there) == ("models/big-model/versions/1", False)
    assert entry.conversation.system_prompt == "Be kind."
    assert entry.description == "far away"
    assert bases.register(source, system_prompt="Be kind.")[1]
    with pytest.raises(InvalidArgument):
        bases.register(source, model_id="Not An Id")


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B", "qwen2-5-0-5b"),
        ("/m/7B_chat/", "m-7b-chat"),
        ("/m/你好", "model"),
        ("/m/" + "x" * 90, "x" * 63),
    ],
)
def test_ids_are_derived(location: str, expected: str) -> None:
    assert derived_id(Source("folder", location)) == expected


def test_a_shipped_base_is_read_from_its_folder(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "chatmill-mini")
    (tmp_path / "chatmill-mini" / "entry.yaml").write_text("license: Apache-2.0\ndescription: small\n")
    (entry,) = shipped_entries(tmp_path)
    assert entry.name == "models/chatmill-mini/versions/1"
    assert (entry.kind, entry.license, entry.shipped) == ("base", "Apache-2.0", True)
    assert entry.revision
    assert all(Path(a.path).is_file() for a in entry.artifacts)
    assert not any(a.path.endswith("entry.yaml") for a in entry.artifacts)
