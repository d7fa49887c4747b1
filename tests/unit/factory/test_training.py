"""What a training does when something goes wrong: one clear line, and nothing that existed before is lost."""

from __future__ import annotations

import errno
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest

from chatmill.errors import (
    Aborted,
    AlreadyExists,
    ChatmillError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
)
from factory_svc.methods.lora.method import Lora
from factory_svc.methods.scratch import Scratch
from factory_svc.task import Progress, TrainingTask
from factory_svc.training import train

from .conftest import TINY, conversations

QUICK: dict[str, Any] = {**TINY, "batch_size": 4, "max_length": 128, "precision": "fp32"}


def _task(output: Path, method: str = "scratch", **changes: Any) -> TrainingTask:
    parameters = {**QUICK, **changes.pop("parameters", {})}
    return TrainingTask(
        **{"method": method, "output": output, "conversations": conversations(), "parameters": parameters, **changes}
    )


def test_a_finished_model_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "precious").write_text("x")
    with pytest.raises(AlreadyExists):
        train(_task(tmp_path / "model"))
    assert (tmp_path / "model" / "precious").read_text() == "x"


def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Scratch, "save", full)
    with pytest.raises(ResourceExhausted, match=r"The disk is full: .* Free some space") as caught:
        train(_task(tmp_path / "model", parameters={"max_steps": 2}))
    assert "\n" not in caught.value.message
    assert caught.value.reason == "DISK_FULL"
    assert not (tmp_path / "model").exists()
    assert list(tmp_path.iterdir()) == []


def test_safetensors_reports_a_full_disk_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(Scratch, "save", full)
    with pytest.raises(ResourceExhausted):
        train(_task(tmp_path / "model", parameters={"max_steps": 2}))


def test_a_diverged_training_saves_nothing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    build = Lora.build

    def poisoned(self: Lora, *args: Any) -> Any:
        built = build(self, *args)
        for name, weight in built.model.named_parameters():
            if "lora_A" in name:
                weight.data.fill_(math.nan)
        assert torch.is_grad_enabled()
        return built

    monkeypatch.setattr(Lora, "build", poisoned)
    task = TrainingTask(
        method="lora",
        output=tmp_path / "x",
        base=str(base),
        conversations=conversations(),
        parameters={"max_steps": 3, "precision": "fp32"},
    )
    with pytest.raises(Aborted, match="diverged") as caught:
        train(task)
    assert caught.value.reason == "DIVERGED"
    assert not (tmp_path / "x").exists()


def test_a_training_that_changes_nothing_is_refused(base: Path, tmp_path: Path) -> None:
    task = TrainingTask(
        method="lora",
        output=tmp_path / "x",
        base=str(base),
        conversations=conversations(),
        parameters={"max_steps": 1, "warmup_ratio": 1, "precision": "fp32"},
    )
    with pytest.raises(FailedPrecondition, match="changed no weight"):
        train(task)


def test_an_interrupted_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    task = _task(tmp_path / "model", parameters={"max_steps": 12, "progress_steps": 1})
    asked = itertools.count()

    with pytest.raises(Aborted) as caught:
        train(task, should_stop=lambda: next(asked) >= 5)
    assert caught.value.reason == "INTERRUPTED"
    stopped = int(caught.value.metadata["step"])
    assert stopped == 5
    assert (task.checkpoint_folder() / f"checkpoint-{stopped}").is_dir()
    assert not task.output.exists()

    resumed: list[Progress] = []
    outcome = train(
        _task(tmp_path / "model", parameters={"max_steps": 12, "progress_steps": 1}, resume=True), resumed.append
    )
    steps = [p.step for p in resumed if p.phase == "training"]
    assert steps[0] == stopped
    assert steps[-1] == outcome.steps == 12
    assert not task.checkpoint_folder().exists()


def test_checkpoints_are_written_as_time_passes(tmp_path: Path) -> None:
    found: list[list[str]] = []
    task = _task(tmp_path / "model", parameters={"max_steps": 4, "checkpoint_seconds": 0.001})

    def look(_: Progress) -> None:
        folder = task.checkpoint_folder()
        found.append(sorted(p.name for p in folder.glob("checkpoint-*")) if folder.exists() else [])

    train(task, look)
    assert any(found), "no checkpoint was there while it trained"
    assert all(len(names) <= 1 for names in found), "old checkpoints go"


@pytest.mark.parametrize(
    ("lines", "error", "text"),
    [
        (None, NotFound, "does not exist"),
        ("", InvalidArgument, "not one conversation"),
        ("{", InvalidArgument, "data.jsonl:1"),
        ('{"messages": [{"role": "agent", "content": "x"}]}', InvalidArgument, "needs a role"),
        ('{"messages": [{"role": "user", "content": "only a question"}]}', InvalidArgument, "Nothing is left"),
    ],
)
def test_bad_data_is_named(
    lines: str | None, error: type[ChatmillError], text: str, base: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data.jsonl"
    if lines is not None:
        file.write_text(lines)
    task = TrainingTask(method="lora", output=tmp_path / "x", data=file, base=str(base), parameters={"max_steps": 1})
    with pytest.raises(error, match=text):
        train(task)
    assert not (tmp_path / "x").exists()


def test_a_base_of_pickles_is_refused(base: Path, tmp_path: Path) -> None:
    pickles = tmp_path / "pickles"
    pickles.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (pickles / name).write_bytes((base / name).read_bytes())
    (pickles / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    task = TrainingTask(
        method="lora", output=tmp_path / "x", conversations=conversations(), base=str(pickles), parameters={}
    )
    with pytest.raises(FailedPrecondition, match="only pickle weights") as caught:
        train(task)
    assert caught.value.reason == "PICKLE_WEIGHTS"


def test_auto_precision_is_resolved_and_recorded(base: Path, tmp_path: Path) -> None:
    task = TrainingTask(
        method="lora",
        output=tmp_path / "x",
        base=str(base),
        conversations=conversations(),
        parameters={"max_steps": 3, "max_length": 128},
    )
    outcome = train(task)
    assert outcome.precision in ("fp32", "bf16")
    assert outcome.parameters["precision"] == outcome.precision
    assert any("chosen: " in note for note in outcome.notes), "it is said why"


def test_bf16_autocast_reaches_the_lean_loss(base: Path, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        task = TrainingTask(
            method="lora",
            output=tmp_path / precision,
            base=str(base),
            conversations=conversations(),
            parameters={"max_steps": 3, "precision": precision, "max_length": 128},
        )
        losses[precision] = train(task).final_loss
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.02)


def test_the_lean_loss_is_trls_loss(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from factory_svc import lean

    def final(name: str) -> float | None:
        task = TrainingTask(
            method="lora",
            output=tmp_path / name,
            base=str(base),
            conversations=conversations(),
            parameters={"max_steps": 4, "precision": "fp32", "max_length": 128, "gradient_accumulation": 2},
        )
        return train(task).final_loss

    ours = final("lean")
    monkeypatch.setattr(lean, "MOST_LOGITS", 0)
    assert ours == pytest.approx(final("tiles"), rel=1e-5)


def test_scratch_goes_on_from_given_weights(tmp_path: Path) -> None:
    said: list[str] = []
    first = train(
        _task(tmp_path / "first", parameters={"max_steps": 20, "learning_rate": 0.01}), lambda p: said.append(p.note)
    )
    assert not any("teach a model little" in note for note in said)
    further = train(
        _task(tmp_path / "further", parameters={"max_steps": 2, "weights": str(tmp_path / "first")}),
        lambda p: said.append(p.note),
    )
    assert sum(note.startswith("2 optimiser steps in all teach a model little") for note in said) == 1
    assert first.first_loss is not None
    assert further.first_loss is not None
    assert further.first_loss < 0.9 * first.first_loss
    assert "Goes on from given weights." in further.notes
    tokenizers = [(tmp_path / made / "tokenizer.json").read_text(encoding="utf-8") for made in ("first", "further")]
    assert tokenizers[0] == tokenizers[1]


def test_a_task_survives_the_way_to_the_worker(tmp_path: Path) -> None:
    task = TrainingTask(
        method="lora", output=tmp_path / "o", data=tmp_path / "d", base="x", parameters={"rank": 4}, seed=3
    )
    assert TrainingTask.from_json(task.to_json()) == task
    assert json.loads(task.to_json())["data"] == str(tmp_path / "d")
