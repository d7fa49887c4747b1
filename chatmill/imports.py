"""Importing libraries without what they do on import and nobody here wants.

Services and trainings call this before anything else imports the library: PEFT and TRL do as well.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import Any, cast

_ONE_AT_A_TIME = threading.Lock()


def import_bitsandbytes() -> None:
    """Import bitsandbytes, silently, and with its functions for rare devices and shapes as they are written.

    It hands those to `torch.compile` on import, and torch imports its compiler for that, which is most of the import's
    time: over a second, ten where Python may keep no bytecode. It also warns that it found no package with which to
    fetch another kernel from the hub.
    """
    with _ONE_AT_A_TIME:
        if "bitsandbytes" in sys.modules:
            return
        import torch

        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        compile_ = torch.compile
        torch.compile = cast(Any, _as_it_is)
        try:
            import bitsandbytes  # noqa: F401 - others use it
        finally:
            torch.compile = compile_


def _as_it_is(function: Callable[..., Any] | None = None, **_: Any) -> Any:
    return _as_it_is if function is None else function
