"""The door before the page: TLS, certificates, tokens, bounded requests, and a clear line where it stays shut."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from bridge import serving
from bridge.access import TokenWall
from bridge.guard import Guard
from bridge.names import Names
from chatmill.runtime.authentication import Tokens
from chatmill.runtime.testing import local_config


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ca.pem`, and `server` and `client` certificates that it signed."""
    folder = tmp_path_factory.mktemp("pki")
    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    ca = folder / "ca.pem"
    _openssl("req", "-x509", *new, "-keyout", folder / "ca.key", "-out", ca, "-days", 2, "-subj", "/CN=authority")
    (folder / "san.cnf").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        key, request, cert = (folder / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
        _openssl("req", *new, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl("x509", "-req", "-in", request, "-CA", ca, "-CAkey", folder / "ca.key", "-CAcreateserial",
                 "-out", cert, "-days", 2, "-extfile", folder / "san.cnf")  # fmt: skip
    return folder


def secured(pki: Path, **more: object) -> dict[str, str]:
    files = {"cert_file": pki / "server.pem", "key_file": pki / "server.key", "ca_file": pki / "ca.pem", **more}
    return {f"mesh.security.{key}": str(value) for key, value in files.items()}


@asynccontextmanager
async def serving_page(home: Path, options: dict[str, str]) -> AsyncIterator[str]:
    """The bridge as `python -m bridge` serves it; its address, `https://127.0.0.1:PORT`."""
    pytest.importorskip("gradio", reason="the testers' page is not installed: pip install 'chatmill[ui]'")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    config = local_config(home, {"bridge.port": "0", "mesh.grace_seconds": "1", **options})
    task = asyncio.create_task(serving.serve(config))
    told = home / "run" / "bridge.json"
    while not told.is_file():
        assert not task.done(), task.exception()
        await asyncio.sleep(0.05)
    yield f"https://127.0.0.1:{json.loads(told.read_text())['port']}"
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def client(pki: Path, *, certificate: bool = False, **more: Any) -> httpx.AsyncClient:
    context = ssl.create_default_context(cafile=str(pki / "ca.pem"))
    if certificate:
        context.load_cert_chain(pki / "client.pem", pki / "client.key")
    return httpx.AsyncClient(verify=context, timeout=60, trust_env=False, **more)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_over_tls_only_who_knows_a_token_sees_the_page(pki: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("lead:s3cret\n")
    (tmp_path / "tokens").chmod(0o600)
    options = secured(pki) | {"mesh.security.token_file": str(tmp_path / "tokens")}
    async with serving_page(tmp_path / "home", options) as url, client(pki) as web:
        assert (await web.get(f"{url}/healthz")).json()["status"] == "ok"
        refused = await web.get(f"{url}/test/")
        assert (refused.status_code, refused.headers["www-authenticate"][:5]) == (401, "Basic")
        assert (await web.get(f"{url}/test/config", auth=("lead", "wrong"))).status_code == 401
        assert (await web.get(f"{url}/test/config", auth=("other", "s3cret"))).status_code == 401
        page = await web.get(f"{url}/test/", auth=("lead", "s3cret"))
        assert page.status_code == 200
        assert "Chatmill" in page.text
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        bearer = {"authorization": "Bearer s3cret"}
        big = await web.post(f"{url}/test/gradio_api/queue/join", headers=bearer, content=b"x" * 1_100_000)
        assert big.status_code == 413
        upload = await web.post(f"{url}/test/gradio_api/upload", headers=bearer, files={"files": b"x" * 100})
        assert upload.status_code >= 400
        for path in ("/docs", "/openapi.json", "/test/docs", "/test/openapi.json", "/test/gradio_api/info"):
            found = await web.get(url + path, headers=bearer)
            assert found.status_code == 404 or '"named_endpoints":{}' in found.text.replace(" ", ""), path
        with pytest.raises(httpx.HTTPError):
            await web.get(url.replace("https", "http") + "/healthz")


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_with_mtls_only_who_has_a_certificate_gets_in(pki: Path, tmp_path: Path) -> None:
    options = secured(pki, mtls="true", client_cert_file=pki / "client.pem", client_key_file=pki / "client.key")
    async with serving_page(tmp_path / "home", options) as url:
        async with client(pki) as stranger:
            with pytest.raises(httpx.HTTPError):
                await stranger.get(f"{url}/healthz")
        async with client(pki, certificate=True) as known:
            assert (await known.get(f"{url}/test/")).status_code == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bridge.host": "0.0.0.0"}, "TLS (mesh.security.cert_file and key_file) and authentication"),
        ({"bridge.port": "70000"}, "port must be between 0"),
        ({"bridge.hosts": "[https://chat.example.com/test]"}, "names without scheme, port and path"),
    ],
)
def test_an_open_door_is_refused_in_one_line(
    options: dict[str, str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(serving, "check_installed", lambda: None)
    words = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    assert serving.main([*words, "--set", f"mesh.home={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1


def test_without_the_web_libraries_one_line_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "PACKAGES", ("gradio_that_is_not_there",))
    assert serving.main([]) == 2
    assert capsys.readouterr().err == (
        "bridge: the testers' page needs gradio_that_is_not_there. "
        f"Install it with: {sys.executable} -m pip install 'chatmill[ui]'\n"
    )


async def _echo(scope: Any, receive: Any, send: Any) -> None:
    taken = 0
    while True:
        message = await receive()
        taken += len(message["body"])
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(taken).encode()})


async def _ask(app: Any, chunks: list[bytes], headers: list[tuple[bytes, bytes]], path: str = "/test/") -> list[Any]:
    sent: list[Any] = []
    left = list(chunks)

    async def receive() -> Any:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", "path": path, "headers": headers}, receive, send)
    return sent


async def test_a_body_is_bounded_whether_or_not_it_says_its_length() -> None:
    app = Guard(_echo, max_body=100)
    start, body = await _ask(app, [b"x" * 60, b"x" * 40], [])
    assert (start["status"], body["body"]) == (200, b"100")
    assert dict(start["headers"])[b"x-content-type-options"] == b"nosniff"
    assert (await _ask(app, [b"x" * 60, b"x" * 41], []))[0]["status"] == 413
    assert (await _ask(app, [b"x" * 101, b"x", b"x"], []))[0]["status"] == 413
    assert (await _ask(app, [b""], [(b"content-length", b"101")]))[0]["status"] == 413


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"Bearer s3cret", 200),
        (b"Bearer wrong", 401),
        (b"Basic bGVhZDpzM2NyZXQ=", 200),  # lead:s3cret
        (b"Basic b3BzOnMzY3JldA==", 401),  # ops:s3cret
        (b"Basic \xff\xff", 401),
        (b"Digest s3cret", 401),
        (b"", 401),
    ],
)
async def test_a_token_opens_the_wall(header: bytes, status: int, tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_text("lead:s3cret\n")
    path.chmod(0o600)
    wall = TokenWall(_echo, Tokens(path))
    assert (await _ask(wall, [b""], [(b"authorization", header)]))[0]["status"] == status


@pytest.mark.parametrize(
    ("host", "origin", "options", "status"),
    [
        ("127.0.0.1:8080", "", {}, 200),
        ("localhost", "", {}, 200),
        ("LOCALHOST:9000", "http://localhost:9000", {}, 200),
        ("[::1]:8080", "http://[::1]:8080", {}, 200),
        ("evil.example", "", {}, 403),
        ("evil.example", "http://evil.example", {}, 403),
        ("evil.example@127.0.0.1", "", {}, 403),
        ("127.0.0.1.evil.example", "", {}, 403),
        ("", "", {}, 403),
        ("127.0.0.1:8080", "http://evil.example", {}, 403),
        ("127.0.0.1:8080", "http://127.0.0.1:9999", {}, 403),
        ("127.0.0.1:8080", "null", {}, 403),
        ("chat.example.com", "https://chat.example.com", {}, 403),
        ("chat.example.com", "https://chat.example.com", {"bridge.hosts": "[Chat.example.com]"}, 200),
        ("chat.example.com:443", "https://chat.example.com", {"bridge.hosts": "[chat.example.com]"}, 200),
        ("127.0.0.1:8080", "https://chat.example.com:8443", {"bridge.hosts": "[chat.example.com]"}, 200),
        ("chat.example.com", "https://evil.example", {"bridge.hosts": "[chat.example.com]"}, 403),
        ("evil.example", "", {"bridge.hosts": "[chat.example.com]"}, 403),
        ("chat.example.com", "https://chat.example.com", {"mesh.security.token_file": "tokens"}, 200),
        ("chat.example.com:443", "https://chat.example.com", {"mesh.security.token_file": "tokens"}, 200),
        ("chat.example.com", "http://evil.example", {"mesh.security.token_file": "tokens"}, 403),
        ("evil.example", "", {"mesh.security.token_file": "tokens", "bridge.hosts": "[chat.example.com]"}, 403),
    ],
)
async def test_the_bridge_answers_to_its_own_names_and_its_own_pages(
    host: str, origin: str, options: dict[str, str], status: int, tmp_path: Path
) -> None:
    names = Names(_echo, local_config(tmp_path, options))
    headers = [(name, value.encode()) for name, value in ((b"host", host), (b"origin", origin)) if value]
    start, body = await _ask(names, [b""], headers)
    assert start["status"] == status
    assert (b"bridge.hosts" in body["body"]) == (status == 403)


async def test_a_balancer_may_ask_for_the_health_under_any_name(tmp_path: Path) -> None:
    names = Names(_echo, local_config(tmp_path))
    assert (await _ask(names, [b""], [(b"host", b"10.0.0.7:8080")], "/healthz"))[0]["status"] == 200
