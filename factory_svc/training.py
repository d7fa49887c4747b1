"""One way to train, whatever the method: check, read the data, run the method, and put the result in place by a rename.

`train` is what the worker calls; programs that build a model without a service (the maker of the embedded base model)
call it in their own process. It knows methods only through their Protocol, and neither jobs nor the registry.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chatmill import disk
from chatmill.errors import AlreadyExists, ChatmillError, InvalidArgument
from factory_svc.environment import describe_environment
from factory_svc.loop import SftLoop, tidy_checkpoints
from factory_svc.methods import METHODS
from factory_svc.methods.parameters import check_parameters
from factory_svc.task import Progress, Report, ShouldStop, TrainingOutcome, TrainingTask, read_conversations

__all__ = ["train"]

# Read once, when huggingface_hub is imported, which happens later: nothing here reports to anybody.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")


def _silent(_: Progress) -> None:
    """The report of callers that want none."""


def train(task: TrainingTask, report: Report = _silent, should_stop: ShouldStop = lambda: False) -> TrainingOutcome:
    """Do `task`; on success `task.output` holds the files, and on any failure nothing that existed has changed.

    Args:
        task: what to do.
        report: called with every `Progress`, in this thread.
        should_stop: asked after every step; True writes a checkpoint and ends with `Interrupted`.

    Raises:
        InvalidArgument: wrong parameters, no data, or nothing to train on.
        NotFound: unknown method, missing data file or base.
        AlreadyExists: `task.output` exists.
        FailedPrecondition: the base can't be used; says why.
        ResourceExhausted: the disk is full.
        Aborted: reason `INTERRUPTED` if `should_stop` asked for it, `DIVERGED` if the loss is not a number.
    """
    method = METHODS.get(task.method)
    parameters = check_parameters(method.parameters, task.parameters)
    if method.needs_base and not task.base:
        raise InvalidArgument.field("base", f"the method {method.name} needs a base model")
    if task.output.exists():
        raise AlreadyExists(f"{task.output} exists; a finished model is never overwritten.", reason="OUTPUT_EXISTS")
    conversations = read_conversations(task)
    try:
        with (
            disk.clear_errors(str(task.output), task.output.parent),
            _folder_in_waiting(task.output) as (folder, finish),
        ):
            loop = SftLoop(report, should_stop)
            outcome = method.run(task, parameters, conversations, folder, loop)
            report(Progress(step=outcome.steps, total_steps=outcome.steps, phase="saving"))
            finish()
    except ChatmillError:
        tidy_checkpoints(task.checkpoint_folder())
        raise
    shutil.rmtree(task.checkpoint_folder(), ignore_errors=True)
    return dataclasses.replace(outcome, environment=describe_environment())


@contextmanager
def _folder_in_waiting(output: Path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder beside `output`, and the function that makes it `output`; removed if that was not called."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))

    def finish() -> None:
        for file in folder.rglob("*"):
            if file.is_file():
                with file.open("rb") as stream:
                    os.fsync(stream.fileno())
        folder.chmod(0o755)
        folder.rename(output)

    try:
        yield folder, finish
    finally:
        shutil.rmtree(folder, ignore_errors=True)
