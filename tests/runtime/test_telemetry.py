from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest

from chatmill.config import Mesh
from chatmill.runtime import telemetry
from chatmill.runtime.identity import REQUEST_ID


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def test_json_has_fields_service_request_id_and_stack(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup_logging(Mesh(log_format="json"), "factory")
    token = REQUEST_ID.set("abc")
    try:
        logging.getLogger("x").info("训练 done\nforged", extra={"fields": {"steps": 3, "path": object}})
        try:
            raise ValueError("why")
        except ValueError:
            logging.getLogger("x").exception("failed")
    finally:
        REQUEST_ID.reset(token)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["message"] == "训练 done\nforged"
    assert (first["service"], first["level"], first["logger"], first["steps"]) == ("factory", "info", "x", 3)
    assert first["request_id"] == "abc"
    assert first["time"].endswith("+00:00")
    assert "ValueError: why" in second["stack"]


def test_console_is_one_line_even_for_values_that_would_forge_more(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup_logging(Mesh(), "factory")
    logging.getLogger("x").warning("rpc", extra={"fields": {"error": 'a\nb "c"', "ms": 1.25, "none": None, "n": 0}})
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r'WARNING factory   rpc error="a\nb \"c\"" ms=1.2 n=0')


def test_a_message_with_a_line_break_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup_logging(Mesh(), "factory")
    logging.getLogger("x").warning("from a request: %s", "a\n10:00:00.000 INFO    factory   forged")
    (line,) = capsys.readouterr().err.splitlines()
    assert r"a\n10:00" in line


def test_the_level_holds(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.setup_logging(Mesh(log_level="warning"), "factory")
    logging.getLogger("x").info("no")
    assert capsys.readouterr().err == ""
