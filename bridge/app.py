"""The HTTP app: each door of the bridge is a module that mounts itself here."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.responses import RedirectResponse

from bridge import testers
from bridge.guard import Guard
from bridge.mesh import Mesh
from bridge.names import Names
from chatmill import __version__
from chatmill.config import Config


def build(config: Config) -> FastAPI:
    """The app for a configuration; it dials no service before somebody asks for something."""
    mesh = Mesh(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await mesh.close()

    closed: dict[str, Any] = {"docs_url": None, "redoc_url": None, "openapi_url": None}
    app = FastAPI(title="Chatmill", version=__version__, lifespan=lifespan, **closed)
    app.add_middleware(Names, config=config)
    app.add_middleware(Guard)  # around the other, so that a refusal has its headers, too

    @app.get("/healthz", include_in_schema=False)
    async def healthz() -> dict[str, str]:
        """Whether the bridge itself answers; it says nothing of the services behind it."""
        return {"status": "ok", "version": __version__}

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        """The page for people."""
        return RedirectResponse(testers.PATH)

    testers.mount(app, mesh, config.bridge)
    return app
