"""Importing libraries without what they do on import and nobody here wants.

Services and trainings call this before anything else imports the library: PEFT and TRL do as well.
"""

from __future__ import annotations

import logging
from typing import Any


def import_bitsandbytes() -> None:
    """Import bitsandbytes, silently, and with its fallbacks for rare devices as they are written.

    It hands those to `torch.compile` on import, and torch imports its compiler for that, which is most of the import's
    time: over a second, ten where Python may keep no bytecode. Where compiling fails, bitsandbytes takes the functions
    as they are. CPU and CUDA have kernels of their own. It also warns that it found no package with which to fetch
    another kernel from the hub, which nobody here wants.
    """
    import torch

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    compile_ = torch.compile
    torch.compile = _refuse
    try:
        import bitsandbytes  # noqa: F401 - others use it
    finally:
        torch.compile = compile_


def _refuse(*_: Any, **__: Any) -> Any:
    raise NotImplementedError
