"""The one training loop: TRL's SFTTrainer over rows whose labels we made, watched so that nothing fails silently.

It knows models only as something with parameters; how they are built and saved is the methods' business.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chatmill.errors import Aborted, FailedPrecondition
from factory_svc.lean import lean_trainer, prefer_eager
from factory_svc.methods.base import Trainable
from factory_svc.methods.parameters import GradientParameters
from factory_svc.precision import choose_precision
from factory_svc.task import Messages, Progress, Report, ShouldStop, TrainingOutcome, TrainingTask
from factory_svc.tokenization import Tokenized, tokenize

_FEW_STEPS = 20
"""With fewer optimiser steps in all, whoever trains is told that they teach little."""
_SHORTEST_REPORT = 0.2
"""Seconds between two progress reports at least."""


@dataclass(slots=True)
class SftLoop:
    """Trains what a method built.

    Attributes:
        report: told of every progress.
        should_stop: asked after every step.
    """

    report: Report
    should_stop: ShouldStop

    def fit(
        self, built: Trainable, task: TrainingTask, parameters: GradientParameters, conversations: list[Messages]
    ) -> TrainingOutcome:
        """Train `built.model` in place.

        Raises:
            InvalidArgument: no row is left to train on.
            FailedPrecondition: no weight of the model is trainable, or training changed none.
            Aborted: reason `INTERRUPTED` (a checkpoint was written) or `DIVERGED` (the loss is not a number).
        """
        if self.should_stop():
            raise Aborted("Training was interrupted before its first step.", reason="INTERRUPTED")
        self.report(Progress(phase="tokenizing", note=f"Tokenizing {len(conversations)} conversations."))
        rows = tokenize(
            built.tokenizer,
            conversations,
            max_length=parameters.max_length,
            over_length=parameters.over_length,
            loss_on=parameters.loss_on,
        )
        trainable = [p for p in built.model.parameters() if p.requires_grad]
        if not trainable:
            raise FailedPrecondition("The model has no trainable weights.", reason="NOTHING_TRAINABLE")
        prefer_eager(built.model, max(map(len, rows.input_ids)))
        precision, note = choose_precision(built.model, rows, parameters.precision)
        notes = [*built.notes, *_data_notes(rows), *([note] if note else [])]
        self.report(Progress(phase="tokenizing", note=" ".join(notes)))
        before = _fingerprint(trainable)
        watch = self._run(built, task, parameters, rows, precision)
        if watch.step == 0 or _fingerprint(trainable) == before:
            raise FailedPrecondition(
                f"Training made {watch.step} steps and changed no weight, so there is nothing to keep. "
                "Raise epochs, max_steps or learning_rate.",
                reason="NOTHING_TRAINED",
            )
        return TrainingOutcome(
            kind="",
            output=task.output,
            parameters={**parameters.resolved(), "precision": precision},
            data=rows.counters,
            steps=watch.step,
            epochs=watch.epoch,
            first_loss=watch.first_loss,
            final_loss=watch.final_loss(),
            tokens_trained=watch.tokens,
            seconds=round(watch.seconds(), 3),
            precision=precision,
            trainable_parameters=sum(p.numel() for p in trainable),
            total_parameters=sum(p.numel() for p in built.model.parameters()),
            notes=tuple(notes),
        )

    def _run(
        self, built: Trainable, task: TrainingTask, parameters: GradientParameters, rows: Tokenized, precision: str
    ) -> Watch:
        from datasets import Dataset

        dataset = Dataset.from_dict(
            {"input_ids": rows.input_ids, "labels": rows.labels, "length": [len(r) for r in rows.input_ids]}
        )
        watch = Watch(self.report, self.should_stop, parameters)
        trainer = lean_trainer()(
            model=built.model,
            args=_arguments(task, parameters, precision),
            train_dataset=dataset,
            processing_class=built.tokenizer,
            callbacks=[_callback(watch)],
        )
        # The trainer's own lines go to stdout; ours are the report.
        for name in ("PrinterCallback", "ProgressCallback"):
            trainer.callback_handler.callbacks = [
                c for c in trainer.callback_handler.callbacks if type(c).__name__ != name
            ]
        trainer.train(resume_from_checkpoint=_newest_checkpoint(task.checkpoint_folder()) if task.resume else None)
        if watch.interrupted:
            raise Aborted(
                f"Training was interrupted at step {watch.step} of {watch.total_steps}; "
                f"a checkpoint lies in {task.checkpoint_folder()}.",
                reason="INTERRUPTED",
                metadata={"step": str(watch.step), "checkpoints": str(task.checkpoint_folder())},
            )
        return watch


class Watch:
    """Follows a run: reports, checks the loss, and carries the wish to stop or to write a checkpoint."""

    def __init__(self, report: Report, should_stop: ShouldStop, parameters: GradientParameters) -> None:
        self.report = report
        self.should_stop = should_stop
        self.parameters = parameters
        self.started = self.last_time = self.last_checkpoint = time.monotonic()
        self.first_step: int | None = None
        self.warm: tuple[int, float] | None = None
        self.step = self.total_steps = self.tokens = 0
        self.epoch = 0.0
        self.losses: list[tuple[int, float]] = []
        self.unreported: list[float] = []
        self.first_loss: float | None = None
        self.interrupted = False

    def seconds(self) -> float:
        """Seconds since the loop began."""
        return time.monotonic() - self.started

    def begin(self, step: int, total_steps: int) -> None:
        """The loop starts at `step` (not 0 if it resumes)."""
        self.started = self.last_time = self.last_checkpoint = time.monotonic()
        self.first_step, self.step, self.total_steps = step, step, total_steps
        self.warm = None
        note = ""
        if total_steps < _FEW_STEPS:
            note = (
                f"{total_steps} optimiser steps in all teach a model little; more epochs, a smaller batch_size or more "
                "conversations give more."
            )
        self.report(Progress(step=step, total_steps=total_steps, note=note))

    def logged(self, logs: dict[str, Any]) -> None:
        """The trainer logged: check and report.

        Raises:
            Aborted: the loss or the gradient norm is not a number.
        """
        if "loss" not in logs:
            return
        loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise Aborted(
                f"Training diverged at step {self.step}: loss {loss}, gradient norm {norm}. "
                "Lower learning_rate, raise warmup_ratio, or set precision to fp32.",
                reason="DIVERGED",
            )
        if self.first_loss is None:
            self.first_loss = loss
        self.losses.append((self.step, loss))
        self.unreported.append(loss)
        now, tokens = time.monotonic(), int(logs.get("num_tokens", 0))
        if now - self.last_time < _SHORTEST_REPORT and 1 < self.step < self.total_steps:
            return  # Many tiny steps a second: what is not reported now is part of the next mean.
        speed = (tokens - self.tokens) / max(now - self.last_time, 1e-9)
        self.last_time, self.tokens = now, tokens
        if self.warm is None:
            self.warm = self.step, now
        done = self.step - self.warm[0]
        left = (self.total_steps - self.step) * (now - self.warm[1]) / done if done else None
        self.report(
            Progress(
                step=self.step,
                total_steps=self.total_steps,
                loss=sum(self.unreported) / len(self.unreported),
                tokens_per_second=speed,
                seconds_left=left,
                learning_rate=logs.get("learning_rate"),
                epoch=self.epoch,
            )
        )

        self.unreported.clear()

    def final_loss(self) -> float | None:
        """Mean loss over the last tenth of the steps."""
        late = [loss for step, loss in self.losses if step > 0.9 * self.step] or [loss for _, loss in self.losses[-1:]]
        return sum(late) / len(late) if late else None

    def checkpoint_due(self) -> bool:
        """Whether enough time has passed since the last checkpoint."""
        every = self.parameters.checkpoint_seconds
        if not every or time.monotonic() - self.last_checkpoint < every:
            return False
        self.last_checkpoint = time.monotonic()
        return True


def _callback(watch: Watch) -> Any:
    """`watch` as a transformers callback."""
    from transformers import TrainerCallback

    class Follow(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.begin(state.global_step, state.max_steps)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.step, watch.epoch = state.global_step, float(state.epoch or 0.0)
            if watch.should_stop() and watch.step < watch.total_steps:
                watch.interrupted = True
                control.should_training_stop = control.should_save = True
            elif watch.step == watch.total_steps:
                control.should_log = True  # The last loss is the one that people ask for.
            elif watch.checkpoint_due():
                control.should_save = True

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            watch.logged(logs or {})

    return Follow()


def _arguments(task: TrainingTask, parameters: GradientParameters, precision: str) -> Any:
    import torch
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(task.checkpoint_folder()),
        learning_rate=parameters.learning_rate,
        num_train_epochs=parameters.epochs,
        max_steps=parameters.max_steps or -1,
        per_device_train_batch_size=parameters.batch_size,
        gradient_accumulation_steps=parameters.gradient_accumulation,
        warmup_steps=parameters.warmup_ratio,
        lr_scheduler_type=parameters.scheduler,
        weight_decay=parameters.weight_decay,
        max_grad_norm=parameters.max_grad_norm,
        max_length=None,
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        train_sampling_strategy="group_by_length" if parameters.group_by_length else "random",
        length_column_name="length",
        activation_checkpointing=False,
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        logging_steps=parameters.progress_steps,
        logging_first_step=True,
        # The default filter replaces NaN by the mean of the past, which hides a diverged run.
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        seed=task.seed,
        data_seed=task.seed,
        # On a CPU they would take the cores from the model; a GPU would wait for one process that pads batches.
        dataloader_num_workers=min(4, os.cpu_count() or 1) if torch.cuda.is_available() else 0,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def tidy_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first; half-written ones are removed, and the folder if nothing is left."""
    complete = []
    for path in sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2])):
        # transformers writes the trainer's state last.
        if (path / "trainer_state.json").is_file():
            complete.append(path)
        else:
            shutil.rmtree(path, ignore_errors=True)
    if not complete:
        shutil.rmtree(folder, ignore_errors=True)
    return complete


def _newest_checkpoint(folder: Path) -> str | None:
    found = tidy_checkpoints(folder)
    return str(found[-1]) if found else None


def _fingerprint(weights: list[Any]) -> tuple[float, ...]:
    """Changes whenever an optimiser step changes the weights; cheap, not cryptographic."""
    return tuple(float(w.detach().double().abs().sum()) for w in weights)


def _data_notes(rows: Tokenized) -> list[str]:
    c = rows.counters
    trained = f"{c.examples_trained} of {c.examples_read} conversations, {c.tokens} tokens"
    notes = [f"{trained}, {c.target_tokens} of them to be learned."]
    if c.truncated:
        notes.append(f"{c.truncated} cut at max_length ({c.tokens_cut} tokens lost).")
    if c.dropped_over_length:
        notes.append(f"{c.dropped_over_length} dropped as too long.")
    if c.dropped_no_target:
        notes.append(f"{c.dropped_no_target} dropped without an assistant token.")
    if c.tool_messages_skipped:
        notes.append(f"{c.tool_messages_skipped} turns of tools left out, as the chat template has no role for them.")
    if rows.mask_source == "turns":
        notes.append("Assistant tokens found turn by turn, as the template has no generation markers.")
    return notes
