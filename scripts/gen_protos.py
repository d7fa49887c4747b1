"""Make the Python code under chatmill/*/v1 from protos/, with a pinned toolchain.

The toolchain is old on purpose: generated code demands a protobuf runtime at least as new as its compiler, so the
oldest usable compiler gives users the widest choice (docs/adr/0002). It lives in a virtual environment of its own,
since it can't be installed beside the newest protobuf. Run it after each change in protos/; `make protos-check` fails
when the result differs from what is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
OUT = ROOT
TOOLCHAIN = (
    "grpcio-tools==1.76.0",
    "protobuf==6.32.1",
    "mypy-protobuf==5.1.0",
    "googleapis-common-protos==1.72.0",
    "setuptools==80.9.0",
)


def toolchain_python() -> Path:
    """Path of the toolchain's interpreter; installs the toolchain on the first call."""
    key = hashlib.sha256("\n".join(TOOLCHAIN).encode()).hexdigest()[:12]
    home = ROOT / ".tools" / f"protos-{key}"
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        venv.create(home, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TOOLCHAIN], check=True)
        (home / "complete").touch()
    return python


def protoc(python: Path, *arguments: str | Path) -> None:
    """Run the toolchain's protoc with protos/, googleapis and the well-known types on its include path."""
    locate = (
        "import grpc_tools, google.api, pathlib as p; print(p.Path(grpc_tools.__file__).parent / '_proto');"
        "print(p.Path(list(google.api.__path__)[0]).parent.parent)"
    )
    found = subprocess.run([python, "-c", locate], check=True, capture_output=True, text=True).stdout.split()
    environment = {**os.environ, "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [python, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *(f"-I{path}" for path in found), *arguments]
    subprocess.run(command, check=True, env=environment)


def generate(python: Path) -> None:
    """Run protoc over all of protos/ and write the packages' `__init__.py`."""
    for stale in OUT.glob("chatmill/*/v1/*_pb2*"):
        stale.unlink()
    protos = sorted(PROTOS.rglob("*.proto"))
    services = [p for p in protos if p.name.endswith("_service.proto")]
    protoc(python, f"--python_out={OUT}", f"--mypy_out=quiet:{OUT}", *protos)
    protoc(python, f"--grpc_python_out={OUT}", f"--mypy_grpc_out=quiet,async_only:{OUT}", *services)
    for package in sorted({p.parent.relative_to(PROTOS) for p in protos}):
        write_init(package)


def write_init(package: Path) -> None:
    """Re-export all public names, so that nobody has to write `_pb2`."""
    folder = OUT / package
    lines = [f'"""Generated from protos/{package.as_posix()}; edit nothing here."""', ""]
    exported: list[str] = []
    for proto in sorted((PROTOS / package).glob("*.proto")):
        text = re.sub(r"//[^\n]*", "", proto.read_text(encoding="utf-8"))
        depth, names = 0, []
        for token in re.finditer(r"[{}]|\b(message|enum)\s+(\w+)|\b([A-Z][A-Z0-9_]+)\s*=\s*\d+\s*;", text):
            if token[0] == "{":
                depth += 1
            elif token[0] == "}":
                depth -= 1
            elif token[2] and depth == 0:
                names.append(token[2])
            elif token[3] and depth == 1:
                names.append(token[3])
        module = f"{package.as_posix().replace('/', '.')}.{proto.stem}_pb2"
        if names:
            lines.append(f"from {module} import (\n    " + ",\n    ".join(sorted(names)) + ",\n)")
            exported += names
        for service in re.findall(r"^service\s+(\w+)", text, flags=re.M):
            parts = [f"{service}Servicer", f"{service}Stub", f"add_{service}Servicer_to_server"]
            lines.append(f"from {module}_grpc import (\n    " + ",\n    ".join(parts) + ",\n)")
            exported += parts
    lines += ["", "__all__ = [\n    " + ",\n    ".join(f'"{name}"' for name in sorted(exported)) + ",\n]", ""]
    (folder / "__init__.py").write_text("\n".join(lines), encoding="utf-8")
    noun = folder.parent / "__init__.py"
    if not noun.exists():
        noun.write_text(f'"""The contract of `{folder.parent.name}`, generated from protos/."""\n', encoding="utf-8")


def main() -> None:
    """Generate the code, or with `--descriptor-set FILE` only write all of the contract into a descriptor set."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--descriptor-set", type=Path, metavar="FILE")
    target = parser.parse_args().descriptor_set
    if target:
        options = ("--include_imports", "--include_source_info", f"--descriptor_set_out={target}")
        protoc(toolchain_python(), *options, *sorted(PROTOS.rglob("*.proto")))
    else:
        generate(toolchain_python())


if __name__ == "__main__":
    main()
