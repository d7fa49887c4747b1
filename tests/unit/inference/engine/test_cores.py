"""While a step runs on both cores each of its threads stays on one, and otherwise the one that asks for it is free."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from inference_svc.engines.base import BaseSpec
from inference_svc.engines.rows import cores, native
from inference_svc.engines.rows.engine import RowsEngine
from inference_svc.engines.rows.parameters import RowsParameters
from inference_svc.engines.rows.threads import Threaded

from .streams import read, request

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads can be kept on Linux only")
ALL = os.sched_getaffinity(0)
two = pytest.mark.skipif(len(ALL) != cores.THREADS, reason="this process may use more or fewer cores than two")


def apart(work: Callable[[], None]) -> None:
    """Run on a thread of its own, whose place is nobody else's."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    if raised:
        raise raised[0]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Torch's threads, as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tasks() -> set[int]:
    """The threads of this process."""
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}


def kept(threads: set[int]) -> list[int]:
    """Cores that some of these may not leave."""
    found: list[int] = []
    for thread in threads:
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            allowed = os.sched_getaffinity(thread)
            found += allowed if len(allowed) == 1 else ()
    return sorted(found)


@two
def test_each_thread_has_a_core_of_its_own_until_the_caller_is_let_go() -> None:
    others = tasks()

    def work() -> None:
        torch.set_num_threads(len(ALL))
        product = torch.ones(300, 300) @ torch.ones(300, 300)
        found = cores.made(len(ALL))
        assert found is not None
        for _ in range(3):
            found.keep()
            assert len(os.sched_getaffinity(0)) == 1
            assert kept(tasks() - others) == sorted(ALL)
            assert torch.equal(torch.ones(300, 300) @ torch.ones(300, 300), product)
            found.let_go()
            assert os.sched_getaffinity(0) == ALL
            assert len(kept(tasks() - others)) == len(ALL) - 1

    apart(work)
    assert os.sched_getaffinity(0) == ALL


@two
def test_steps_on_fewer_threads_go_where_they_like() -> None:
    seen: dict[int, set[int]] = {}

    class Forward:
        def decode(self, tokens: Tensor, *_: object) -> Tensor:
            seen.setdefault(torch.get_num_threads(), set()).add(len(os.sched_getaffinity(0)))
            return tokens

    def work() -> None:
        threaded = Threaded(Forward(), len(ALL), cores.made(len(ALL)))  # type: ignore[arg-type]
        for _ in range(200):
            threaded.decode(torch.zeros(1), torch.zeros(1), 1, None)

    apart(work)
    assert seen.keys() >= {1, len(ALL)}
    assert seen.pop(len(ALL)) == {1}
    assert all(allowed == {len(ALL)} for allowed in seen.values())


@two
async def test_an_engine_keeps_the_threads_of_its_steps_and_no_other_one(folder: Path) -> None:
    others = tasks()
    engine = RowsEngine(RowsParameters(quantization="none", device="cpu"))
    try:
        await engine.load_base(BaseSpec("tiny", "1", folder))
        await read(await engine.submit(request()))
        found = kept(tasks() - others)
        assert os.sched_getaffinity(0) == ALL
        assert kept(tasks() & others) == []
    finally:
        await engine.close()
    # The one that asks for steps is free if the last of them ran on fewer threads.
    assert set(found) >= set(sorted(ALL)[1:])
    assert len(found) == len(set(found))


@pytest.mark.parametrize("error", [errno.EPERM, errno.EINVAL])
def test_where_it_is_forbidden_the_log_says_so_once(
    error: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = []

    def settle(numbers: ctypes.Array[ctypes.c_int32], count: int) -> int:
        asked.append(list(numbers)[:count])
        return error

    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    found = cores.Cores(SimpleNamespace(settle=settle))  # type: ignore[arg-type]
    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            found.keep()
            found.let_go()
    assert asked == [sorted(ALL)]
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert os.strerror(error) in caplog.text


def test_a_core_that_is_not_there_is_an_error_of_the_system() -> None:
    def work() -> None:
        assert native.load("cores").settle((ctypes.c_int32 * 1)(1 << 14), 1) == errno.EINVAL
        assert os.sched_getaffinity(0) == ALL

    apart(work)


def test_a_team_that_is_smaller_stays_where_it_is() -> None:
    def work() -> None:
        library = native.load("cores")
        levels = library.omp_get_max_active_levels()
        library.omp_set_max_active_levels(0)
        try:
            assert library.settle((ctypes.c_int32 * 2)(min(ALL), min(ALL)), 2) == errno.EAGAIN
        finally:
            library.omp_set_max_active_levels(levels)
        assert os.sched_getaffinity(0) == ALL

    apart(work)


@pytest.mark.parametrize(("threads", "allowed"), [(1, 1), (1, 2), (2, 1), (4, 4), (2, 4)])
def test_there_are_none_but_for_two_threads_on_two_cores(
    threads: int, allowed: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
    assert cores.made(threads) is None
    assert not caplog.records


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv("CC", "no-such-compiler")
    assert cores.made(2) is None
    assert "no-such-compiler" in caplog.text


def test_another_openmp_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    other = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(native, "load", lambda _: SimpleNamespace(omp_get_thread_num=other, settle=None))
    assert cores.made(2) is None
