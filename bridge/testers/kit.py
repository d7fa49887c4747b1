"""Small tools of all panels: texts that follow the language, quiet events, errors told to the tester."""

from __future__ import annotations

import functools
import html
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import gradio as gr

from bridge.testers.texts import FALLBACK, text
from chatmill.errors import ChatmillError

log = logging.getLogger(__name__)

Updates = dict[Any, Any]
"""Component to its update, as Gradio takes them."""


class Told(Exception):
    """Ends a click with a text of the page.

    Args:
        key: of the text.
        values: what it is filled with.
    """

    def __init__(self, key: str, **values: object) -> None:
        super().__init__(key)
        self.key = key
        self.values = values


class Localised:
    """Components whose words follow the language."""

    def __init__(self) -> None:
        self._entries: list[tuple[Any, Callable[[str], dict[str, Any]]]] = []

    def add(self, component: Any, **keys: str) -> Any:
        """Give a component texts: `add(button, value="chat.send")`; returns it."""
        return self.add_made(component, lambda language: {name: text(language, key) for name, key in keys.items()})

    def add_made(self, component: Any, make: Callable[[str], dict[str, Any]]) -> Any:
        """Give a component properties that are made for a language; returns it."""
        self._entries.append((component, make))
        # Until the browser has said its language; gradio would show the kinds of the components.
        for name, value in make(FALLBACK).items():
            setattr(component, name, value)
        return component

    @property
    def components(self) -> list[Any]:
        """All of them."""
        return [component for component, _ in self._entries]

    def updates(self, language: str) -> Updates:
        """All texts in a language."""
        found: Updates = {}
        for component, make in self._entries:
            found.setdefault(component, {}).update(make(language))
        return {component: gr.update(**values) for component, values in found.items()}


def merged(*parts: Updates) -> Updates:
    """Several updates as one: what different parts say of the same component is joined, the later part prevails."""
    found: Updates = {}
    for part in parts:
        for component, value in part.items():
            if component in found:
                found[component] = {**_as_update(found[component]), **_as_update(value)}
            else:
                found[component] = value
    return found


def _as_update(value: Any) -> dict[str, Any]:
    made = value if isinstance(value, dict) and value.get("__type__") == "update" else gr.update(value=value)
    return dict(made)


def choices(language: str, **keys: str) -> list[tuple[str, str]]:
    """Choices of a component, value to text: `choices("en", yes="form.yes")`."""
    return [(text(language, key), value) for value, key in keys.items()]


def tell(language: str, error: ChatmillError | Told) -> None:
    """Show an error in a corner of the page."""
    if isinstance(error, Told):
        gr.Warning(html.escape(text(language, error.key, **error.values)), duration=12)
        return
    log.warning("a tester's click failed: %s: %s", error.code, error.message)
    gr.Warning(html.escape(text(language, "trouble.call", message=error.message)), duration=12)


def guarded(handler: Callable[..., Awaitable[Updates]]) -> Callable[..., Awaitable[Updates]]:
    """A handler whose errors of the mesh are shown instead of raised; its last argument is the language."""

    @functools.wraps(handler)
    async def guard(*arguments: Any) -> Updates:
        try:
            return await handler(*arguments)
        except (ChatmillError, Told) as error:
            tell(arguments[-1], error)
            return {}

    return guard


def guarded_stream(handler: Callable[..., AsyncGenerator[Updates, None]]) -> Callable[..., AsyncIterator[Updates]]:
    """The same for a handler that yields."""

    @functools.wraps(handler)
    async def guard(*arguments: Any) -> AsyncIterator[Updates]:
        try:
            async with aclosing(handler(*arguments)) as stream:
                async for updates in stream:
                    yield updates
        except (ChatmillError, Told) as error:
            tell(arguments[-1], error)
            yield {}

    return guard


def on(trigger: Any, handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **more: Any) -> Any:
    """Bind a handler to an event of a component, quietly: no public API, no spinner over what one reads."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    unique = list({id(component): component for component in outputs}.values())
    return trigger(handler, list(inputs), unique, **{**quiet, **more})


def clock() -> str:
    """The time of day where the server is, for `saved` lines."""
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")
