"""Rates in a real Redis: replicas count together, and an outage lets requests pass, counted and logged."""

import contextlib
import shutil
import socket
import subprocess
import time

import pytest
from serving_fakes import TINY, open_door, text_of

from chatmill import errors
from chatmill.ports import free_port
from inference_svc import metrics
from inference_svc.rates import Rates


@pytest.fixture
def redis(tmp_path):
    """A Redis of our own on a free port, and its address."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed; scripts/install_system_packages.sh installs it")
    port = free_port("127.0.0.1")
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield process, f"async+redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def test_replicas_count_together(redis):
    _, storage = redis
    one, other = Rates(3, 1000, storage), Rates(3, 1000, storage)
    await one.charge("a", 10)
    await other.charge("a", 10)
    await one.charge("a", 10)
    for replica in (one, other):
        with pytest.raises(errors.ResourceExhausted) as refused:
            await replica.charge("a", 10)
        assert refused.value.reason == "RATE_LIMITED"
        assert 0 < refused.value.retry_after <= 61
    await other.charge("b", 10)
    await one.settle("b", 985)
    with pytest.raises(errors.ResourceExhausted, match="1000 tokens per minute"):
        await other.charge("b", 10)


async def test_an_outage_lets_requests_pass_and_says_so(redis, caplog):
    process, storage = redis
    rates = Rates(1, 100, storage)
    await rates.charge("a", 10)
    process.kill()
    process.wait()
    before = metrics.UNCOUNTED_RATES._value.get()
    for _ in range(3):
        await rates.charge("a", 10)
    await rates.settle("a", 10)
    assert metrics.UNCOUNTED_RATES._value.get() == before + 7
    assert len([record for record in caplog.records if "can't be counted" in record.getMessage()]) == 1


async def test_through_the_door(tmp_path, redis):
    _, storage = redis
    async with open_door(tmp_path, TINY, requests_per_minute=2, rate_storage=storage) as door:
        for _ in range(2):
            assert text_of(await door.ask()) == "Hello there."
        with pytest.raises(errors.ResourceExhausted) as refused:
            await door.ask()
        assert refused.value.reason == "RATE_LIMITED"


@pytest.mark.parametrize("storage", ["async+nothing://x", "redis://127.0.0.1:1", "memory://", "nonsense"])
def test_a_storage_that_can_not_be_used_is_named(storage):
    with pytest.raises(errors.InvalidArgument) as refused:
        Rates(1, 0, storage)
    assert refused.value.violations[0].field == "inference.rate_storage"
