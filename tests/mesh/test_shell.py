"""What a shell sees: every service through reflection, with nothing but buf."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mesh.conftest import SERVICES, Mesh

BUF = Path(sys.executable).with_name("buf")


def curl(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", *arguments],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_every_service_lists_its_methods_and_is_healthy(mesh: Mesh, service: str) -> None:
    url = f"http://{mesh.address(service)}"
    listed = curl("--list-methods", url)
    assert listed.returncode == 0, listed.stderr
    assert any(line.startswith(f"chatmill.{service}.v1.") for line in listed.stdout.splitlines())
    health = curl("-d", "{}", f"{url}/grpc.health.v1.Health/Check")
    assert json.loads(health.stdout) == {"status": "SERVING"}


@pytest.mark.parametrize(
    ("service", "method"),
    [
        ("dataset", "chatmill.dataset.v1.DatasetService/ListDatasetClasses"),
        ("dataset", "chatmill.dataset.v1.DatasetService/ListDatasets"),
        ("factory", "chatmill.factory.v1.FactoryService/ListTrainingMethods"),
        ("factory", "chatmill.factory.v1.FactoryService/ListTrainingJobs"),
        ("factory", "chatmill.factory.v1.RegistryService/ListModels"),
        ("inference", "chatmill.inference.v1.InferenceService/ListServedModels"),
        ("inference", "chatmill.inference.v1.ServingAdminService/GetLoad"),
        ("eval", "chatmill.eval.v1.EvalService/ListEvaluations"),
        ("eval", "chatmill.eval.v1.EvalService/ListSuites"),
    ],
)
def test_every_service_can_be_called(mesh: Mesh, service: str, method: str) -> None:
    called = curl("-d", "{}", f"http://{mesh.address(service)}/{method}")
    assert called.returncode == 0, called.stderr
    json.loads(called.stdout)


def test_no_method_is_unimplemented(mesh: Mesh) -> None:
    for service in SERVICES:
        url = f"http://{mesh.address(service)}"
        for method in curl("--list-methods", url).stdout.split():
            if method.startswith("chatmill.") and "Watch" not in method:
                answer = curl("-d", '{"resume": true}' if method.endswith("/Drain") else "{}", f"{url}/{method}")
                assert '"unimplemented"' not in answer.stderr, method


def test_a_shell_can_chat_with_the_embedded_model(mesh: Mesh) -> None:
    request = {
        "spec": {
            "model": "models/chatmill-tiny",
            "messages": [{"role": "ROLE_USER", "content": "Good morning!"}],
            "sampling": {"max_output_tokens": 24, "temperature": 0},
        }
    }
    url = f"http://{mesh.address('inference')}/chatmill.inference.v1.InferenceService/Generate"
    called = curl("-d", json.dumps(request), url)
    assert called.returncode == 0, called.stderr
    decoder, events, rest = json.JSONDecoder(), [], called.stdout.strip()
    while rest:
        event, end = decoder.raw_decode(rest)
        events.append(event["event"])
        rest = rest[end:].lstrip()
    assert "".join(e["delta"].get("text", "") for e in events if "delta" in e).strip()
    assert [list(e)[-1] for e in events].count("finished") == 1
    assert "finished" in events[-1]


def test_a_wrong_request_names_the_field(mesh: Mesh) -> None:
    url = f"http://{mesh.address('inference')}/chatmill.inference.v1.InferenceService/Generate"
    called = curl("-d", "{}", url)
    assert called.returncode != 0
    assert "spec" in called.stderr
    assert "invalid_argument" in called.stderr
