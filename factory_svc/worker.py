"""A process that does one training task: `python -m factory_svc.worker task.json`.

It speaks JSON lines on its standard output and nothing else goes there: whatever a library prints lands on standard
error. SIGTERM and SIGINT make it write a checkpoint and stop. With `--owned` it also stops when its standard input
closes, so that it never outlives the service that started it. It knows nothing of jobs, the registry or gRPC.

====================  =====================================================================================
line                  meaning
====================  =====================================================================================
``progress``          the fields of `Progress`
``done``              `outcome`, the fields of `TrainingOutcome`; the files are in place
``failed``            `code`, `reason`, `message`, `violations` of a `ChatmillError`; `INTERNAL` for a defect
====================  =====================================================================================
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from chatmill.errors import BY_CODE, ChatmillError, FieldViolation, Internal, InvalidArgument
from factory_svc.task import Progress, TrainingTask

NICENESS = 15
"""Training can wait: what is served on the same machine, whose arithmetic runs at 10, comes first."""


def main(arguments: list[str] | None = None) -> int:
    """Do the task; returns 0 when done, 1 when it failed or was interrupted."""
    os.nice(NICENESS)
    parser = argparse.ArgumentParser(prog="factory_svc.worker", description="Do one training task.")
    parser.add_argument("task", type=Path, help="JSON file with the fields of TrainingTask")
    parser.add_argument("--owned", action="store_true", help="stop when standard input closes")
    options = parser.parse_args(arguments)
    lines = _private_stdout()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    if options.owned:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    try:
        outcome = _train(TrainingTask.from_json(options.task.read_text(encoding="utf-8")), lines, stop)
    except ChatmillError as error:
        _say(lines, "failed", **error_to_dict(error))
        return 1
    except Exception as error:
        traceback.print_exc()
        wrapped = Internal(f"Training failed unexpectedly: {type(error).__name__}: {_first_line(error)}")
        _say(lines, "failed", **error_to_dict(wrapped))
        return 1
    _say(lines, "done", outcome=outcome)
    return 0


def _train(task: TrainingTask, lines: TextIO, stop: threading.Event) -> dict[str, Any]:
    from factory_svc.training import train

    def report(progress: Progress) -> None:
        try:
            _say(lines, "progress", **asdict(progress))
        except BrokenPipeError:
            stop.set()

    return train(task, report, stop.is_set).to_dict()


def error_to_dict(error: ChatmillError) -> dict[str, Any]:
    """An error as JSON-able data; `error_from_dict` is the way back."""
    violations = [asdict(v) for v in error.violations] if isinstance(error, InvalidArgument) else []
    return {
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
        "metadata": error.metadata,
        "violations": violations,
    }


def error_from_dict(values: Mapping[str, Any]) -> ChatmillError:
    """The error that `error_to_dict` wrote."""
    cls = BY_CODE.get(str(values["code"]), Internal)
    extra: dict[str, Any] = {"reason": values.get("reason"), "metadata": values.get("metadata")}
    if cls is InvalidArgument:
        extra["violations"] = [FieldViolation(**v) for v in values.get("violations", ())]
    return cls(str(values["message"]), **extra)


def _private_stdout() -> TextIO:
    """The real standard output, for our lines alone; everybody else's goes to standard error from now on."""
    private = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return os.fdopen(private, "w", encoding="utf-8", buffering=1)


def _stop_at_end_of_input(stop: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    stop.set()


def _say(lines: TextIO, event: str, **fields: Any) -> None:
    lines.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
    lines.flush()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
