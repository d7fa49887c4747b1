"""C sources beside this module, compiled when they are first wanted, by the machine's own C compiler (`CC`, else `cc`).

What they do, torch can do as well, only slower, so a machine without a compiler serves too. With torch's wheels
for Linux and gcc their threads are torch's, since both use the one libgomp of the process. This module knows no model.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
import tempfile
from pathlib import Path

# No loop with a comparison of floats is vectorised while a comparison might trap.
_FLAGS = ("-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")


def load(name: str, *flags: str) -> ctypes.CDLL:
    """The library made of `{name}.c`.

    Args:
        name: of the source, without its ending.
        flags: for the compiler, besides those that all have.

    Raises:
        OSError: it can't be had; the message says why.
    """
    source = Path(__file__).with_name(f"{name}.c")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{name}.so"
        command = [*shlex.split(os.environ.get("CC") or "cc"), *_FLAGS, *flags, str(source), "-o", str(library), "-lm"]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        except FileNotFoundError as error:
            raise OSError(f"there is no C compiler {command[0]!r} (Debian: gcc)") from error
        except subprocess.CalledProcessError as error:
            raise OSError(f"{shlex.join(command)} failed: {error.stderr.strip()[:500]}") from error
        except subprocess.TimeoutExpired as error:
            raise OSError(f"{shlex.join(command)} took more than a minute") from error
        return ctypes.CDLL(str(library))
