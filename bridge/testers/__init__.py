"""The testers' page: talk to a model, say what is wrong, compare two blindly. State is kept by HumanEvalService."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.mesh import Mesh
from chatmill.config import BridgeSettings

if TYPE_CHECKING:
    from fastapi import FastAPI

PATH = "/test"


def mount(app: FastAPI, mesh: Mesh, settings: BridgeSettings) -> None:
    """Put the page under `/test` of an app. It fetches nothing from outside and calls nobody but the mesh."""
    import gradio as gr  # takes seconds and half a gigabyte of packages, so it waits until it is wanted

    from bridge.testers.desk import Desk
    from bridge.testers.look import CSS, theme
    from bridge.testers.malformed import HANDLERS
    from bridge.testers.page import Page

    page = Page(Desk(mesh, settings.models, settings.patience_seconds), settings.testers)
    app.state.testers = gr.mount_gradio_app(
        app,
        page.blocks,
        path=PATH,
        server_name=settings.host,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=0,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None, "exception_handlers": HANDLERS},
        theme=theme(),
        css_paths=CSS,
    )
