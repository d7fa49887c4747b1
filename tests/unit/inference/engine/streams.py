"""Requests to an engine and what their streams say."""

from __future__ import annotations

from inference_svc.engines.base import Generation
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.generation import Delta, Finished, GenerationRequest, Sampling, Started

PARAMETERS = RowsParameters(quantization="none", threads=1, max_rows=4, max_waiting=4, dtype="float32", device="cpu")
GREEDY = Sampling(temperature=0, max_output_tokens=8, ignore_eos=True)
LONG = Sampling(temperature=0, max_output_tokens=400, ignore_eos=True)


def request(name: str = "r", sampling: Sampling = GREEDY, **changes: object) -> GenerationRequest:
    given = {"token_ids": (20, 30, 40)} if not {"messages", "text", "token_ids"} & set(changes) else {}
    return GenerationRequest(name, sampling=sampling, **given, **changes)


async def read(generation: Generation) -> tuple[Started, list[int], Finished]:
    events = [event async for event in generation]
    assert isinstance(events[0], Started)
    assert isinstance(events[-1], Finished)
    deltas = events[1:-1]
    assert all(isinstance(event, Delta) for event in deltas)
    return events[0], [token for event in deltas for token in event.token_ids], events[-1]


async def first_delta(generation: Generation) -> None:
    async for event in generation:
        if isinstance(event, Delta):
            return


async def read_any(generation: Generation) -> None:
    async for _ in generation:
        pass
