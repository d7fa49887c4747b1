from __future__ import annotations

import asyncio
import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from probe_service import ProbeRequest, ProbeServicer, ProbeStub

from chatmill.config import Config, Mesh, Security
from chatmill.errors import InvalidArgument, Unauthenticated, Unavailable
from chatmill.runtime import authentication, channel, health, security, server, testing


@dataclass(frozen=True)
class Pki:
    """A certificate authority and what it signed, made on the spot."""

    folder: Path

    def sign(self, name: str, common_name: str, *, days: str = "2") -> tuple[Path, Path]:
        key, request, cert = (self.folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        extensions = self.folder / "san.cnf"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
        _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key, "-out",
                 request, "-subj", f"/CN={common_name}")  # fmt: skip
        _openssl("x509", "-req", "-in", request, "-CA", self.folder / "ca.pem", "-CAkey", self.folder / "ca.key",
                 "-CAcreateserial", "-out", cert, "-days", days, "-extfile", extensions)  # fmt: skip
        return cert, key


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    folder = tmp_path_factory.mktemp("pki")
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
             folder / "ca.key", "-out", folder / "ca.pem", "-days", "2", "-subj", "/CN=test authority")  # fmt: skip
    made = Pki(folder)
    made.sign("server", "chatmill-mesh")
    made.sign("client", "java-backend")
    return made


def tls(pki: Pki, **more: object) -> dict[str, str]:
    values = {"cert_file": pki.folder / "server.pem", "key_file": pki.folder / "server.key",
              "ca_file": pki.folder / "ca.pem", **more}  # fmt: skip
    return {f"mesh.security.{key}": str(value) for key, value in values.items()}


def tokens(folder: Path, text: str, client: str) -> dict[str, str]:
    for name, content in (("tokens", text), ("client", client)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o600)
    return {
        "mesh.security.token_file": str(folder / "tokens"),
        "mesh.security.client_token_file": str(folder / "client"),
    }


async def name_of(harness: testing.Harness, caplog: pytest.LogCaptureFixture) -> str:
    """Call once, and return the principal that the server logged."""
    caplog.set_level("INFO", "chatmill.rpc")
    stub: Any = ProbeStub(harness.channel)
    assert (await stub.UnaryUnary(ProbeRequest(name="a"))).text == "a"
    fields = [r.__dict__["fields"] for r in caplog.records if r.name == "chatmill.rpc"]
    return str(fields[-1].get("principal", ""))


async def test_tls_and_token_round_trip(
    pki: Pki, service: server.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = testing.local_config(
        tmp_path, tls(pki) | tokens(tmp_path, "# who\nops: s3cret-1\nbridge:s3cret-2\n", "bridge:s3cret-2\n")
    )
    async with testing.running(service, config) as harness:
        assert await name_of(harness, caplog) == "bridge"
        assert "s3cret" not in caplog.text


async def test_with_tls_and_tokens_a_server_may_listen_everywhere(
    pki: Pki, service: server.Service, tmp_path: Path
) -> None:
    config = testing.local_config(tmp_path, tls(pki) | tokens(tmp_path, "a:t", "t") | {"dataset.host": "0.0.0.0"})
    async with testing.running(service, config) as harness:
        assert harness.running.target.startswith("127.0.0.1:")
        assert await health.check(harness.channel)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (None, "TOKEN_MISSING"),
        ("Bearer wrong", "INVALID_TOKEN"),
        ("Bearer ", "TOKEN_MISSING"),
        ("Basic s3cret", "INVALID_TOKEN"),
        ("Bearer s3cre", "INVALID_TOKEN"),
        ("Bearer s3cret2", "INVALID_TOKEN"),
    ],
)
@pytest.mark.parametrize("name", ["UnaryUnary", "UnaryStream"])
async def test_a_wrong_token_is_refused_before_the_handler(
    servicer: ProbeServicer, service: server.Service, tmp_path: Path, header: str | None, reason: str, name: str
) -> None:
    config = testing.local_config(tmp_path, tokens(tmp_path, "ops:s3cret", "s3cret"))
    async with testing.running(service, config) as harness, channel.connect(harness.running.target) as bare:
        stub: Any = ProbeStub(bare)
        call = getattr(stub, name)(ProbeRequest(), metadata=[("authorization", header)] if header else None)
        with pytest.raises(Unauthenticated) as caught:
            await (call if name == "UnaryUnary" else anext(call))
        assert caught.value.reason == reason
        assert not servicer.entered.is_set()
        assert await health.check(bare)  # a probe has no token


async def test_a_token_may_be_revoked_while_the_server_runs(service: server.Service, tmp_path: Path) -> None:
    config = testing.local_config(tmp_path, tokens(tmp_path, "ops:old", "old"))
    async with testing.running(service, config) as harness:
        stub: Any = ProbeStub(harness.channel)
        await stub.UnaryUnary(ProbeRequest(name="a"))
        (tmp_path / "tokens").write_text("ops:brand-new")
        with pytest.raises(Unauthenticated):
            await stub.UnaryUnary(ProbeRequest(name="a"))
        (tmp_path / "client").write_text("brand-new")
        await stub.UnaryUnary(ProbeRequest(name="a"))
        (tmp_path / "tokens").write_text("")  # half-way through an edit: the last good one stays in force
        await stub.UnaryUnary(ProbeRequest(name="a"))


async def test_mtls_knows_the_caller_by_its_certificate(
    pki: Pki, service: server.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = {"client_cert_file": pki.folder / "client.pem", "client_key_file": pki.folder / "client.key"}
    config = testing.local_config(tmp_path, tls(pki, mtls=True, **client))
    async with testing.running(service, config) as harness:
        assert await name_of(harness, caplog) == "java-backend"


async def test_mtls_refuses_a_client_without_a_certificate(pki: Pki, service: server.Service, tmp_path: Path) -> None:
    config = testing.local_config(tmp_path, tls(pki, mtls=True))
    async with testing.running(service, config) as harness:
        without = Config(mesh=_mesh(Security(ca_file=pki.folder / "ca.pem")))
        async with channel.connect(harness.running.target, without) as bare:
            with pytest.raises(Unavailable):
                await health.check(bare)


async def test_plain_text_and_foreign_authorities_are_refused(
    pki: Pki, service: server.Service, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = testing.local_config(tmp_path, tls(pki))
    other = tmp_path_factory.mktemp("other")
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
             other / "ca.key", "-out", other / "ca.pem", "-days", "2", "-subj", "/CN=someone else")  # fmt: skip
    async with testing.running(service, config) as harness:
        for candidate in (Security(), Security(ca_file=other / "ca.pem")):
            async with channel.connect(harness.running.target, Config(mesh=_mesh(candidate))) as bare:
                with pytest.raises(Unavailable):
                    await health.check(bare)


def _mesh(candidate: Security) -> Any:
    return Mesh(security=candidate)


async def test_a_rotated_certificate_is_shown_from_the_next_handshake(
    pki: Pki, service: server.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = pki.sign("rotating", "first")
    config = testing.local_config(tmp_path, tls(pki, cert_file=cert, key_file=key))
    async with testing.running(service, config) as harness:
        address = ("127.0.0.1", harness.running.port)

        def shown() -> str:
            return ssl.get_server_certificate(address)

        first = await asyncio.to_thread(shown)
        assert first.split() == cert.read_text().split()
        pki.sign("rotating", "second")
        second = await asyncio.to_thread(shown)
        assert second.split() == cert.read_text().split()
        assert second != first
        cert.write_text("not a certificate")
        assert await health.check(harness.channel)


async def test_a_client_shows_its_rotated_certificate_without_a_restart(
    pki: Pki, service: server.Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = pki.sign("rotating-client", "before")
    client = {"client_cert_file": cert, "client_key_file": key}
    config = testing.local_config(tmp_path, tls(pki, mtls=True, **client))
    async with testing.running(service, config) as harness:
        assert await name_of(harness, caplog) == "before"
        stub: Any = ProbeStub(harness.channel)
        under_way = stub.StreamStream()
        await under_way.write(ProbeRequest(name="1"))
        assert (await anext(under_way)).text == "1"
        pki.sign("rotating-client", "after")
        assert await name_of(harness, caplog) == "after"
        await under_way.write(ProbeRequest(name="2"))
        assert (await anext(under_way)).text == "2"
        await under_way.done_writing()
        assert [m async for m in under_way] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no token"), ("# nothing\n", "holds no token"), ("abc", ":1: expected `name:token`")],
)
def test_a_token_file_that_would_let_nobody_in(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tokens"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=message):
        authentication.Tokens(path)


def test_a_token_file_that_others_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "tokens"
    path.write_text("a:b")
    path.chmod(0o644)
    authentication.Tokens(path)
    assert "chmod 600" in caplog.text


async def test_missing_files_are_named(service: server.Service, tmp_path: Path) -> None:
    for overrides in (
        {"mesh.security.cert_file": "/nowhere/a.pem", "mesh.security.key_file": "/nowhere/a.key"},
        {"mesh.security.token_file": "/nowhere/a.txt"},
    ):
        with pytest.raises(InvalidArgument, match=r"mesh\.security\.\w+: /nowhere/a"):
            await server.start(service, testing.local_config(tmp_path, overrides))


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("localhost.evil.example", False)],
)  # fmt: skip
def test_loopback(host: str, expected: bool) -> None:
    assert security.is_loopback(host) is expected
