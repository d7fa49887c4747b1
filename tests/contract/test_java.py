"""A Java back end can be built on the contract with what Debian ships: protoc 3.21 and grpc-java 1.41."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import google.api
import pytest

ROOT = Path(__file__).resolve().parents[2]
JARS = Path("/usr/share/java")
NEEDED = ("protobuf.jar", "grpc-api.jar", "grpc-stub.jar", "grpc-protobuf.jar", "guava.jar")


@pytest.mark.slow
def test_the_contract_compiles_with_grpc_java_1_41(tmp_path: Path) -> None:
    plugin = shutil.which("grpc_java_plugin")
    if not (plugin and shutil.which("protoc") and shutil.which("javac") and all((JARS / j).exists() for j in NEEDED)):
        pytest.skip("the Debian packages libgrpc-java and protobuf-compiler-grpc-java-plugin are not installed")
    googleapis = Path(next(iter(google.api.__path__))).parents[1]
    sources, classes = tmp_path / "src", tmp_path / "classes"
    sources.mkdir()
    ours = sorted(str(p) for p in (ROOT / "protos").rglob("*.proto"))
    theirs = [str(googleapis / name) for name in ("google/api/field_behavior.proto", "google/rpc/status.proto")]
    subprocess.run(
        ["protoc", f"-I{ROOT / 'protos'}", f"-I{googleapis}", "-I/usr/include", f"--java_out={sources}",
         f"--plugin=protoc-gen-grpc-java={plugin}", f"--grpc-java_out={sources}", *ours, *theirs],
        check=True,
    )  # fmt: skip
    java = sorted(str(p) for p in sources.rglob("*.java"))
    assert any(p.endswith("InferenceServiceGrpc.java") for p in java)
    # The generated stubs carry javax.annotation.Generated, which left the JDK with Java 9.
    annotation = sources / "javax" / "annotation" / "Generated.java"
    annotation.parent.mkdir(parents=True)
    annotation.write_text(
        'package javax.annotation; public @interface Generated { String value(); String comments() default ""; }'
    )
    compiled = subprocess.run(
        [
            "javac",
            "-nowarn",
            "-d",
            str(classes),
            "-cp",
            ":".join(str(JARS / j) for j in NEEDED),
            *java,
            str(annotation),
        ],
        capture_output=True,
        text=True,
    )
    assert compiled.returncode == 0, compiled.stderr[-4000:]
    assert (classes / "ai/chatmill/inference/v1/InferenceServiceGrpc.class").exists()
