"""The contract as a document: documented, lint clean, and served without gaps."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor, FileDescriptor

ROOT = Path(__file__).resolve().parents[2]
NOUNS = ("common", "dataset", "factory", "inference", "eval")


def files() -> list[FileDescriptor]:
    found = []
    for module in sorted(ROOT.glob("chatmill/*/v1/*_pb2.py")):
        name = ".".join(module.relative_to(ROOT).with_suffix("").parts)
        found.append(importlib.import_module(name).DESCRIPTOR)
    return found


def messages(file: FileDescriptor) -> list[tuple[str, list[FieldDescriptor]]]:
    return [(name, list(message.fields)) for name, message in file.message_types_by_name.items()]


def test_every_package_of_the_design_is_there() -> None:
    assert {f.package for f in files()} == {f"chatmill.{noun}.v1" for noun in NOUNS}


def test_numbers_are_signed_because_java_has_no_unsigned() -> None:
    unsigned = {
        FieldDescriptor.TYPE_UINT32,
        FieldDescriptor.TYPE_UINT64,
        FieldDescriptor.TYPE_FIXED32,
        FieldDescriptor.TYPE_FIXED64,
    }
    wrong = [f.full_name for file in files() for _, fields in messages(file) for f in fields if f.type in unsigned]
    assert wrong == []


def test_java_gets_a_class_per_message_in_its_own_package() -> None:
    for file in files():
        options = file.GetOptions()
        assert options.java_multiple_files
        assert options.java_package == f"ai.{file.package}"


def test_every_create_can_be_retried_by_request_id() -> None:
    for name in ("CreateDatasetRequest", "TrainRequest", "RunEvaluationRequest", "RegisterModelRequest"):
        (fields,) = [fs for file in files() for n, fs in messages(file) if n == name]
        assert "request_id" in {f.name for f in fields}


def test_every_name_of_a_resource_is_required_where_it_is_asked_for() -> None:
    for file in files():
        for name, fields in messages(file):
            if name.startswith(("Get", "Delete", "Cancel")) and name.endswith("Request"):
                for field in fields:
                    if field.name in ("name", "request_id"):
                        behaviour = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
                        assert field_behavior_pb2.REQUIRED in behaviour, field.full_name


@pytest.mark.slow
def test_lint_notices_a_missing_comment(tmp_path: Path) -> None:
    image = tmp_path / "contract.binpb"
    target = tmp_path / "chatmill" / "x" / "v1"
    target.mkdir(parents=True)
    (target / "x.proto").write_text('syntax = "proto3";\npackage chatmill.x.v1;\nmessage Bare { string field = 1; }\n')
    buf = Path(sys.executable).with_name("buf")
    subprocess.run([buf, "build", str(tmp_path), "-o", str(image)], check=True)
    config = '{"version":"v2","lint":{"use":["STANDARD","COMMENTS"]}}'
    linted = subprocess.run([buf, "lint", str(image), "--config", config], capture_output=True, text=True)
    assert linted.returncode != 0
    assert 'Message "Bare" should have a non-empty comment' in linted.stdout
