"""A caller with nothing else to do, in a process of its own: one request after the other, each timed until the answer.

    python -m benchmarks.sides.probe TARGET SECONDS REQUEST

What a load generator sees includes the time that its answers wait for its own other streams; this one has none. REQUEST
is a serialised GenerateRequest in hexadecimal, of a request that waits for no place. It begins when a line comes on
standard input, and prints a JSON list: the milliseconds until each refusal. What is admitted is cancelled and not
counted; what got no answer in a second counts as that second.
"""

from __future__ import annotations

import json
import sys
import time

import grpc

from chatmill.inference.v1 import GenerateRequest, InferenceServiceStub

PAUSE = 0.05
"""Seconds between two requests."""
PATIENCE = 1.0
"""Longest time for an answer, in seconds."""


def refusals(stub: InferenceServiceStub, request: GenerateRequest, seconds: float) -> list[float]:
    """Milliseconds until each refusal."""
    found = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        call = stub.Generate(request, timeout=PATIENCE)
        try:
            next(call)
        except grpc.RpcError as error:
            taken = time.perf_counter() - begun
            if error.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED):
                found.append(taken * 1000)
        call.cancel()
        time.sleep(PAUSE)
    return found


def main() -> None:
    """See the module."""
    target, seconds, request = sys.argv[1:]
    with grpc.insecure_channel(target) as channel:
        grpc.channel_ready_future(channel).result(timeout=30)
        print("ready", flush=True)
        sys.stdin.readline()
        stub = InferenceServiceStub(channel)
        print(json.dumps(refusals(stub, GenerateRequest.FromString(bytes.fromhex(request)), float(seconds))))


if __name__ == "__main__":
    main()
