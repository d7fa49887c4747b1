"""Random bytes that are drawn many at a time: never twice, in no thread and no process."""

from __future__ import annotations

import os
import threading

import pytest

from chatmill import randomness
from chatmill.randomness import random_bytes


def test_none_is_given_twice() -> None:
    drawn: list[bytes] = []
    threads = [threading.Thread(target=lambda: drawn.extend(random_bytes() for _ in range(2000))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(drawn)) == len(drawn) == 8000
    assert {len(one) for one in drawn} == {16}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_draws_its_own() -> None:
    randomness._drawn.clear()
    random_bytes()
    here = set(randomness._drawn)
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, random_bytes())
        finally:
            os._exit(0)
    os.close(write)
    there = os.read(read, 16)
    os.close(read)
    os.waitpid(child, 0)
    assert len(there) == 16
    assert there not in here
