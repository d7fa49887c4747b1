from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from probe_service import SERVICE, ProbeRequest, ProbeServicer, ProbeStub, add_to_server

from chatmill.config import Config
from chatmill.errors import FailedPrecondition, Unavailable
from chatmill.runtime import channel, endpoint, health, server, testing

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

Process = asyncio.subprocess.Process
Spawn = Callable[..., Awaitable[Process]]


@pytest.fixture
async def spawn(tmp_path: Path) -> AsyncIterator[Spawn]:
    """Start the probe's process; whatever is left is killed at the end."""
    started: list[Process] = []

    async def start(*arguments: str, **env: str) -> Process:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "probe_main.py"),
            *arguments,
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}", "CHATMILL_HOME": str(tmp_path), **env},
            cwd=tmp_path,
            stderr=asyncio.subprocess.PIPE,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def lines_until(process: Process, text: str) -> list[str]:
    """Lines of the process's standard error up to the one with `text`."""
    assert process.stderr is not None
    lines: list[str] = []
    async with asyncio.timeout(30):
        while not lines or text not in lines[-1]:
            line = await process.stderr.readline()
            assert line, f"ended without {text!r}: {lines}"
            lines.append(line.decode())
    return lines


@asynccontextmanager
async def process_channel(home: Path) -> AsyncIterator[channel.Channel]:
    config = testing.local_config(home)
    async with channel.connect_service("dataset", config) as connected:
        yield connected


async def refusal(stub: Any) -> str:
    """Reason of the first call that is refused; during the drain, calls are still taken."""
    while True:
        try:
            await stub.UnaryUnary(ProbeRequest(name="late"))
        except Unavailable as error:
            return error.reason


async def test_health_is_off_until_ready_and_off_for_good_while_stopping(config: Config) -> None:
    go_on = asyncio.Event()
    service = server.Service("dataset", [(add_to_server, ProbeServicer())], ready=go_on.wait)  # type: ignore[arg-type]
    running = await server.start(service, config)
    async with channel.connect(running.target) as client:
        watch = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await anext(watch)).status == NOT_SERVING
        assert not await health.check(client)
        becoming = asyncio.create_task(running.become_ready())
        await asyncio.sleep(0)
        assert not await health.check(client, SERVICE)
        go_on.set()
        await becoming
        assert (await anext(watch)).status == SERVING
        assert await health.check(client)
        stopping = asyncio.create_task(running.stop())
        assert (await anext(watch)).status == NOT_SERVING
        await stopping


async def test_an_open_health_watch_does_not_hold_the_stop_up(harness: testing.Harness) -> None:
    watch = health_pb2_grpc.HealthStub(harness.channel).Watch(health_pb2.HealthCheckRequest())
    await anext(watch)
    async with asyncio.timeout(2):
        await harness.running.stop(drain=0, grace=30)


async def test_calls_that_do_not_end_are_cancelled_after_the_grace_and_close_comes_last(config: Config) -> None:
    servicer = ProbeServicer()
    servicer.go_on = asyncio.Event()
    order: list[str] = []

    async def drain() -> None:
        order.append("drain")

    async def close() -> None:
        order.append("released" if servicer.released.is_set() else "still running")
        order.append("close")

    service = server.Service("dataset", [(add_to_server, servicer)], drain=drain, close=close)
    running = await server.start(service, config)
    async with channel.connect(running.target) as client:
        stub: Any = ProbeStub(client)
        call = stub.UnaryStream(ProbeRequest(name="a"))
        await anext(call)
        await running.stop(drain=0, grace=0.1)
        with pytest.raises(Unavailable):
            await anext(call)
    assert order == ["drain", "released", "close"]


async def test_reflection_lists_our_services(harness: testing.Harness) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(harness.channel).ServerReflectionInfo(
        iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    )
    names = [service.name for service in (await anext(call)).list_services_response.service]
    assert {SERVICE, "grpc.health.v1.Health"} <= set(names)


async def test_reflection_can_be_turned_off(service: server.Service, tmp_path: Path) -> None:
    config = testing.local_config(tmp_path, {"mesh.reflection": "off"})
    async with testing.running(service, config) as harness:
        call = reflection_pb2_grpc.ServerReflectionStub(harness.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        with pytest.raises(FailedPrecondition, match="does not know"):
            await anext(call)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "example.org", "192.168.1.1"])
async def test_beyond_loopback_needs_tls_and_authentication(service: server.Service, tmp_path: Path, host: str) -> None:
    config = testing.local_config(tmp_path, {"dataset.host": host})
    with pytest.raises(FailedPrecondition, match=r"TLS .* and authentication") as caught:
        await server.start(service, config)
    assert caught.value.reason == "INSECURE_BIND"


async def test_an_address_that_is_not_ours(service: server.Service, tmp_path: Path) -> None:
    config = testing.local_config(tmp_path, {"dataset.host": "127.0.0.1", "dataset.port": "0"})
    server.check_free("dataset", *config.address("dataset"))
    with pytest.raises(FailedPrecondition, match=r"can't listen on 203\.0\.113\.7:1") as caught:
        server.check_free("dataset", "203.0.113.7", 1)
    assert caught.value.reason == "CANNOT_BIND"


async def test_a_port_in_use_is_one_line_and_exit_code_2(spawn: Spawn, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = await spawn("--set", f"dataset.port={port}")
        _, error = await process.communicate()
    assert process.returncode == 2
    lines = error.decode().splitlines()
    assert len(lines) == 1
    assert f"127.0.0.1:{port} is in use" in lines[0]
    assert "CHATMILL_DATASET__PORT" in lines[0]
    assert not (tmp_path / "built").exists()  # nothing was opened that another process may hold


async def test_two_servers_never_share_a_port(
    service: server.Service, harness: testing.Harness, tmp_path: Path
) -> None:
    config = testing.local_config(tmp_path, {"dataset.port": str(harness.running.port)})
    with pytest.raises(FailedPrecondition) as caught:
        await server.start(service, config)
    assert caught.value.reason == "PORT_IN_USE"


async def test_a_misspelt_option_is_one_line_and_exit_code_2(spawn: Spawn) -> None:
    process = await spawn("--set", "dataset.prot=1")
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode() == "dataset: dataset.prot: unknown option; did you mean 'dataset.port'? (flag)\n"


async def test_start_up_work_that_fails_is_one_clear_line_and_closes(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn("--set", "dataset.port=0", PROBE_READY="fail")
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode() == "dataset: the base model x is missing; put it into factory.roots\n"
    assert (tmp_path / "closed").exists()
    assert endpoint.read(tmp_path, "dataset") is None


async def test_a_signal_while_starting_ends_it(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn("--set", "dataset.port=0", PROBE_READY="never")
    await lines_until(process, "getting ready")
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(10):
        assert await process.wait() == 0
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_lets_running_calls_finish_refuses_new_ones_and_closes(
    spawn: Spawn, tmp_path: Path, number: signal.Signals
) -> None:
    process = await spawn("--set", "dataset.port=0")
    ready = (await lines_until(process, " ready "))[-1]
    described = json.loads(endpoint.run_file(tmp_path, "dataset").read_text())
    assert described["pid"] == process.pid
    assert f"port={described['port']}" in ready
    async with process_channel(tmp_path) as client:
        stub: Any = ProbeStub(client)
        running = stub.StreamStream()
        await running.write(ProbeRequest(name="before"))
        assert (await anext(running)).text == "before"
        watch = health_pb2_grpc.HealthStub(client).Watch(health_pb2.HealthCheckRequest(service=SERVICE))
        assert (await anext(watch)).status == SERVING

        process.send_signal(number)
        assert (await anext(watch)).status == NOT_SERVING
        async with asyncio.timeout(5):
            assert await refusal(stub) == "SHUTTING_DOWN"
        await running.write(ProbeRequest(name="after"))
        assert (await anext(running)).text == "after"
        assert not (tmp_path / "closed").exists()
        await running.done_writing()
        assert [message async for message in running] == []
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    assert (tmp_path / "closed").exists()
    assert endpoint.read(tmp_path, "dataset") is None


async def test_a_second_signal_ends_it_at_once(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn("--set", "dataset.port=0", "--set", "mesh.grace_seconds=100")
    await lines_until(process, " ready ")
    async with process_channel(tmp_path) as client:
        stub: Any = ProbeStub(client)
        running = stub.StreamStream()
        await running.write(ProbeRequest(name="a"))
        await running.read()
        process.send_signal(signal.SIGTERM)
        await lines_until(process, " stopping")
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(5):
            assert await process.wait() == -signal.SIGTERM
            with pytest.raises(Unavailable):
                await running.read()
    assert not endpoint.run_file(tmp_path, "dataset").exists()


async def test_a_killed_server_is_a_clear_status_within_a_second(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn("--set", "dataset.port=0")
    await lines_until(process, " ready ")
    async with process_channel(tmp_path) as client:
        stub: Any = ProbeStub(client)
        running = stub.StreamStream()
        await running.write(ProbeRequest(name="a"))
        await anext(running)
        process.kill()
        async with asyncio.timeout(1):
            with pytest.raises(Unavailable, match=rf"{client.target} can't be reached"):
                await anext(running)


async def test_the_metrics_page_counts_calls(spawn: Spawn, tmp_path: Path) -> None:
    process = await spawn("--set", "dataset.port=0", "--set", "mesh.metrics_port=0", "--set", "mesh.log_format=json")
    entry = json.loads((await lines_until(process, '"ready"'))[-1])
    assert entry["service"] == "dataset"
    async with process_channel(tmp_path) as client:
        stub: Any = ProbeStub(client)
        await stub.UnaryUnary(ProbeRequest(name="a"))
        assert [m async for m in stub.UnaryStream(ProbeRequest(name="a"))]
    line = json.loads((await lines_until(process, "UnaryUnary"))[-1])
    assert (line["code"], line["message"]) == ("OK", "rpc")
    page = await asyncio.to_thread(lambda: urllib.request.urlopen(entry["metrics"], timeout=5).read().decode())
    assert f'chatmill_rpc_seconds_count{{code="OK",method="/{SERVICE}/UnaryUnary"}} 1.0' in page
    assert f'chatmill_rpc_messages_sent_total{{method="/{SERVICE}/UnaryStream"}} 3.0' in page


async def test_a_home_that_can_not_be_written_is_one_line(spawn: Spawn, tmp_path: Path) -> None:
    (tmp_path / "run").touch()  # a file where the folder should be
    process = await spawn("--set", "dataset.port=0")
    _, error = await process.communicate()
    assert process.returncode == 2
    assert error.decode().splitlines()[-1].startswith(f"dataset: {tmp_path}/run/dataset.json can't be written")
    assert (tmp_path / "closed").exists()


async def test_a_metrics_port_in_use_stops_the_start_and_closes(spawn: Spawn, tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        process = await spawn("--set", "dataset.port=0", "--set", f"mesh.metrics_port={port}")
        _, error = await process.communicate()
    assert process.returncode == 2
    assert f"127.0.0.1:{port} is in use" in error.decode()
    assert "mesh.metrics_port" in error.decode()
    assert (tmp_path / "closed").exists()


async def test_a_drain_that_fails_does_not_keep_the_service_open(config: Config) -> None:
    closed = asyncio.Event()

    async def drain() -> None:
        raise RuntimeError("no")

    async def close() -> None:
        closed.set()

    service = server.Service("dataset", [(add_to_server, ProbeServicer())], drain=drain, close=close)
    running = await server.start(service, config)
    await running.stop(drain=0)
    assert closed.is_set()


@pytest.mark.slow
async def test_thousands_of_aborted_streams_leave_nothing_behind(
    servicer: ProbeServicer, harness: testing.Harness
) -> None:
    servicer.go_on = asyncio.Event()
    stub: Any = ProbeStub(harness.channel)

    async def abort(count: int) -> None:
        for index in range(count):
            call = stub.UnaryStream(ProbeRequest(name="a"))
            await anext(call)
            if index % 2:
                call.cancel()  # the others are just dropped
            servicer.seen.clear()
        await asyncio.wait_for(harness.running.gate.idle(), 10)
        gc.collect()

    await abort(1000)
    tasks, pages = len(asyncio.all_tasks()), resident_bytes()
    await abort(10_000)
    assert len(asyncio.all_tasks()) <= tasks
    assert (resident_bytes() - pages) / 10_000 < 100  # bytes per stream; a swallowed cancel leaks at least 136


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_targets(tmp_path: Path) -> None:
    config = testing.local_config(tmp_path)
    with pytest.raises(Unavailable, match=r"not running here.*chatmill up"):
        endpoint.resolve(config, "eval")
    endpoint.announce(tmp_path, endpoint.Endpoint("eval", os.getpid(), "0.0.0.0", 1234))
    assert endpoint.resolve(config, "eval") == "127.0.0.1:1234"
    assert endpoint.resolve(testing.local_config(tmp_path, {"eval.port": "7"}), "eval") == "127.0.0.1:7"
    assert endpoint.resolve(testing.local_config(tmp_path, {"mesh.peers.eval": "gpu:9"}), "eval") == "gpu:9"
    endpoint.withdraw(tmp_path, "eval")
    assert endpoint.read(tmp_path, "eval") is None


def test_a_run_file_of_a_process_that_died_does_not_count(tmp_path: Path) -> None:
    gone = 2**22 - 1  # above the usual pid_max of a test machine's processes
    endpoint.announce(tmp_path, endpoint.Endpoint("eval", gone, "127.0.0.1", 1))
    assert endpoint.read(tmp_path, "eval") is None
    endpoint.run_file(tmp_path, "eval").write_text("half a fi")
    assert endpoint.read(tmp_path, "eval") is None


async def test_grpc_itself_has_nothing_to_say(spawn: Spawn, tmp_path: Path) -> None:
    """It would name those of our `GRPC_EXPERIMENTS` that it does not know."""
    process = await spawn()
    lines = await lines_until(process, " ready ")
    async with process_channel(tmp_path) as connected:
        await ProbeStub(connected).UnaryUnary(ProbeRequest(name="here"))
    process.terminate()
    assert process.stderr is not None
    lines += (await process.stderr.read()).decode().splitlines()
    assert await process.wait() == 0
    assert [line for line in lines if " dataset " not in line] == []
