"""Which software and which device a training ran on, for the registry entry."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LIBRARIES = ("chatmill", "torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers")


def describe_environment() -> dict[str, str]:
    """Versions of what matters for the result, the device and the commit of the code (`-dirty` if changed)."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    # A method that trains no weights has not loaded torch, and its device is nobody's concern.
    torch = sys.modules.get("torch")
    if torch is None:
        found["device"] = f"cpu of {os.cpu_count()}"
    elif torch.cuda.is_available():
        found["device"] = f"{torch.cuda.get_device_name(0)} x{torch.cuda.device_count()}, CUDA {torch.version.cuda}"
    else:
        found["device"] = (
            f"cpu x{torch.get_num_threads()} of {os.cpu_count()}, {torch.backends.cpu.get_cpu_capability()}"
        )
    found["commit"] = _commit()
    return found


def _commit() -> str:
    """The commit that the code was run from, or an empty text for an installed package."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
