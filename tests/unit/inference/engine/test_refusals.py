"""What the engine refuses, and how: bad requests, contexts that overflow, damaged models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from chatmill.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from inference_svc.engines.base import BaseSpec
from inference_svc.engines.rows.engine import RowsEngine
from inference_svc.generation import (
    AdapterKey,
    Constraint,
    ConstraintKind,
    FinishReason,
    Message,
    Overflow,
    Role,
    Sampling,
)

from . import tiny
from .streams import PARAMETERS, read, request

BAD: dict[str, tuple[dict[str, object], str]] = {
    "temperature": ({"sampling": Sampling(temperature=-1)}, "sampling.temperature"),
    "nan": ({"sampling": Sampling(temperature=float("nan"))}, "sampling.temperature"),
    "top_p": ({"sampling": Sampling(top_p=0)}, "sampling.top_p"),
    "top_k": ({"sampling": Sampling(top_k=-1)}, "sampling.top_k"),
    "max": ({"sampling": Sampling(max_output_tokens=0)}, "sampling.max_output_tokens"),
    "min": ({"sampling": Sampling(min_output_tokens=9, max_output_tokens=8)}, "sampling.min_output_tokens"),
    "stops": ({"sampling": Sampling(stop_sequences=("x",) * 10_000)}, "sampling.stop_sequences"),
    "empty stop": ({"sampling": Sampling(stop_sequences=("",))}, "sampling.stop_sequences"),
    "logprobs": ({"sampling": Sampling(logprobs=99)}, "sampling.logprobs"),
    "endless": ({"text": "x", "sampling": Sampling(max_output_tokens=2**31 - 1)}, "sampling.max_output_tokens"),
    "no prompt": ({"token_ids": ()}, "messages"),
    "two prompts": ({"token_ids": (3,), "text": "x"}, "messages"),
    "empty text": ({"text": ""}, "text"),
    "surrogate": ({"text": "\ud83d"}, "text"),
    "surrogate in a message": ({"messages": (Message(Role.USER, "\ud83d"),)}, "messages[0].content"),
    "id": ({"token_ids": (99_999,)}, "token_ids"),
    "huge": ({"token_ids": (20,) * 600}, "token_ids"),
    "huge text": ({"text": "x " * 100_000}, "text"),
    "huge message": ({"messages": (Message(Role.USER, "x " * 100_000),)}, "messages"),
    "no room": ({"token_ids": (20,) * 500, "sampling": Sampling(max_output_tokens=100)}, "token_ids"),
    "schema": ({"constraint": Constraint(ConstraintKind.JSON_SCHEMA, "{")}, "constraint"),
    "schema type": ({"constraint": Constraint(ConstraintKind.JSON_SCHEMA, '{"type": 3}')}, "constraint.json_schema"),
    "huge schema": ({"constraint": Constraint(ConstraintKind.GRAMMAR, "x" * 10**6)}, "constraint"),
    "flush": ({"flush_tokens": 0}, "flush_tokens"),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_names_the_field_and_neighbours_do_not_notice(engine: RowsEngine, case: str) -> None:
    changes, field = BAD[case]
    neighbour = await engine.submit(request("neighbour"))
    with pytest.raises(InvalidArgument) as raised:
        await engine.submit(request("bad", **changes))
    assert raised.value.violations[0].field == field
    assert len(str(raised.value)) < 2000
    _, ids, _ = await read(neighbour)
    assert ids == tiny.generate(tiny.model("llama"), [20, 30, 40], 8, ignore_eos=True)
    assert not engine._generations


async def test_old_messages_are_dropped_if_the_request_says_so(engine: RowsEngine) -> None:
    messages = (
        Message(Role.SYSTEM, "be kind"),
        *(Message(Role.USER if n % 2 == 0 else Role.ASSISTANT, f"{n} hello " * 8) for n in range(21)),
    )
    started, _, _ = await read(await engine.submit(request(messages=messages, overflow=Overflow.TRUNCATE_OLDEST)))
    assert started.truncated_messages > 0
    assert started.prompt_tokens <= tiny.CONTEXT - 8


async def test_without_a_wish_the_context_is_the_limit(engine: RowsEngine) -> None:
    stream = await engine.submit(request(sampling=Sampling(temperature=0, ignore_eos=True), token_ids=(20,) * 500))
    _, ids, finished = await read(stream)
    assert finished.finish_reason is FinishReason.CONTEXT_FULL
    assert len(ids) == tiny.CONTEXT - 500


async def test_ids_are_unique_and_adapters_known(engine: RowsEngine) -> None:
    stream = await engine.submit(request())
    with pytest.raises(AlreadyExists):
        await engine.submit(request())
    with pytest.raises(NotFound):
        await engine.submit(request("other", adapter=AdapterKey("nobody")))
    await read(stream)
    await read(await engine.submit(request()))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda p: (p / "model.safetensors").write_bytes((p / "model.safetensors").read_bytes()[:1000]),
            "CORRUPT_WEIGHTS",
        ),
        (lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"), "UNSAFE_WEIGHTS"),
        (lambda p: (p / "config.json").write_text("{"), "CORRUPT_WEIGHTS"),
        (lambda p: (p / "config.json").unlink(), "CORRUPT_WEIGHTS"),
        (
            lambda p: (p / "config.json").write_text(
                json.dumps({**json.loads((p / "config.json").read_text()), "auto_map": {"AutoConfig": "x.Y"}})
            ),
            "REMOTE_CODE",
        ),
    ],
)
async def test_a_damaged_model_is_refused(folder: Path, tmp_path: Path, damage, reason: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy)
    made = RowsEngine(PARAMETERS)
    with pytest.raises(FailedPrecondition) as raised:
        await made.load_base(BaseSpec("tiny", "1", copy))
    assert raised.value.reason == reason
    with pytest.raises(Unavailable):
        await made.submit(request())


async def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await RowsEngine(PARAMETERS).load_base(BaseSpec("tiny", "1", tmp_path / "nowhere"))
