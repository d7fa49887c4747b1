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
    random_bytes()
    here = set(randomness._drawn)
    assert here
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.write(write, random_bytes())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 16) not in here
    os.close(read)
    os.close(write)
