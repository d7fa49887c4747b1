"""C sources beside this module, compiled when they are first wanted, by the machine's own C compiler (`CC`, else `cc`).

What they do, torch can do as well, only slower, so a machine without a compiler serves too. With torch's wheels
for Linux and gcc their threads are torch's, since both use the one libgomp of the process. What was compiled is kept in
the user's cache, `$XDG_CACHE_HOME/chatmill` or `~/.cache/chatmill`, since the largest takes two seconds; where that
can't be written, or others can write there, each process compiles its own. This module knows no model.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import torch

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
    command = [*shlex.split(os.environ.get("CC") or "cc"), *_FLAGS, *flags, str(source)]
    kept = folder / f"{name}-{_fingerprint(command, source.parent)}.so" if (folder := _folder()) else None
    if kept is not None:
        # Not there, or a disk that nothing may be run from.
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(kept))
    with tempfile.TemporaryDirectory() as own:
        library = Path(own) / f"{name}.so"
        _compile(command, library)
        made = ctypes.CDLL(str(library))
        if kept is not None:
            _keep(library, kept)
        return made


def torch_library() -> ctypes.CDLL:
    """What torch computes with on a CPU. Raises OSError where this build of torch has it elsewhere."""
    return ctypes.CDLL(str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"))


def _compile(command: list[str], library: Path) -> None:
    command = [*command, "-o", str(library), "-lm"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        raise OSError(f"there is no C compiler {command[0]!r} (Debian: gcc)") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"{shlex.join(command)} failed: {error.stderr.strip()[:500]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{shlex.join(command)} took more than a minute") from error


def _keep(library: Path, kept: Path) -> None:
    """Under another name until it is whole and on the disk: half of a library ends the process that loads it. A full
    disk keeps none."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        copy = Path(folder) / kept.name
        with copy.open("wb") as file:
            file.write(library.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        copy.replace(kept)


def _folder() -> Path | None:
    """Where libraries are kept, or None if there is no such place that only this user writes to."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "chatmill"
    if not folder.is_absolute():
        return None
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return None
    others = found.st_uid != os.geteuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return None if others or not os.access(folder, os.W_OK) else folder


def _fingerprint(command: list[str], sources: Path) -> str:
    """Differs where the library would: by the sources, the command, the compiler and the processor."""
    parts = [path.read_bytes() for path in sorted(sources.glob("*.[ch]"))]
    parts.append("\0".join([*command, *platform.libc_ver(), platform.machine()]).encode())
    if compiler := shutil.which(command[0]):
        found = Path(compiler).resolve().stat()
        parts.append(f"{compiler} {found.st_size} {found.st_mtime_ns}".encode())
    processor = Path("/proc/cpuinfo")
    if processor.exists():
        kinds = (b"model name", b"flags", b"Features", b"CPU part")
        parts += sorted({line for line in processor.read_bytes().splitlines() if line.startswith(kinds)})
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
