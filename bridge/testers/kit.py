"""Small tools of all panels: texts that follow the language, quiet events, errors told to the tester."""

from __future__ import annotations

import functools
import html
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import gradio as gr

from bridge.testers.texts import FALLBACK, text
from chatmill.errors import ChatmillError

log = logging.getLogger(__name__)

Updates = dict[Any, Any]
"""Component to its update, as Gradio takes them."""

EMPTY: dict[type, Any] = {str: "", bool: False, list: [], dict: {}}
"""Kinds of what the page sends, and what stands for nothing of that kind."""

FORGOTTEN = {"tester": "", "language": "", "session": ""}
"""What a browser keeps of a tester, before there is anything."""


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
    """A handler whose errors of the mesh are shown instead of raised; its last argument is the language.

    It gets nothing of another kind than its annotations say: the page sends what it holds, anybody else sends anything.
    """
    kinds = _kinds(handler)

    @functools.wraps(handler)
    async def guard(*arguments: Any) -> Updates:
        try:
            return _whole(await handler(*_fitting(kinds, arguments)))
        except (ChatmillError, Told) as error:
            tell(_language(arguments), error)
            return _whole({})

    return guard


def guarded_stream(handler: Callable[..., AsyncGenerator[Updates, None]]) -> Callable[..., AsyncIterator[Updates]]:
    """The same for a handler that yields."""
    kinds = _kinds(handler)

    @functools.wraps(handler)
    async def guard(*arguments: Any) -> AsyncIterator[Updates]:
        try:
            async with aclosing(handler(*_fitting(kinds, arguments))) as stream:
                async for updates in stream:
                    yield _whole(updates)
        except (ChatmillError, Told) as error:
            tell(_language(arguments), error)
            yield _whole({})

    return guard


def _whole(updates: Updates) -> Updates:
    # Gradio takes an empty dict for the value of the first output, and fails for want of the others.
    return updates or gr.skip()


def _kinds(handler: Callable[..., Any]) -> list[tuple[type, ...]]:
    """For each argument the kinds that it may have, as its annotation says; none where Gradio makes it or checks it."""
    hints = get_type_hints(handler)
    return [_kinds_of(hints.get(name)) for name in inspect.signature(handler).parameters]


def _kinds_of(hint: Any) -> tuple[type, ...]:
    parts = get_args(hint) if get_origin(hint) is UnionType else (hint,)
    kinds = tuple(get_origin(part) or part for part in parts)
    return kinds if all(kind in EMPTY or kind is type(None) for kind in kinds) else ()


def _fitting(kinds: Sequence[tuple[type, ...]], arguments: Sequence[Any]) -> list[Any]:
    fitting = list(arguments)
    for place, (kind, value) in enumerate(zip(kinds, arguments, strict=False)):  # the rest may come as *arguments
        if kind and value is None and type(None) not in kind:
            fitting[place] = EMPTY[kind[0]]
        elif kind and not (isinstance(value, kind) and _is_text(value)):
            raise Told("trouble.input")
    return fitting


def remembered(saved: Any) -> dict[str, str]:
    """What the browser kept of a tester; `FORGOTTEN` where it is nothing that the page has written."""
    kept = saved if isinstance(saved, dict) else {}
    return {
        name: kept[name] if isinstance(kept.get(name), str) and _is_text(kept[name]) else empty
        for name, empty in FORGOTTEN.items()
    }


def _is_text(value: Any) -> bool:
    """False for text with half a character in it, which JSON can hold and no message of the mesh; else True."""
    return not isinstance(value, str) or not any("\ud800" <= character <= "\udfff" for character in value)


def _language(arguments: Sequence[Any]) -> str:
    return arguments[-1] if isinstance(arguments[-1], str) else FALLBACK


def on(trigger: Any, handler: Callable[..., Any], inputs: Sequence[Any], outputs: Sequence[Any], **more: Any) -> Any:
    """Bind a handler to an event of a component, quietly: no public API, no spinner over what one reads."""
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    unique = list({id(component): component for component in outputs}.values())
    return trigger(handler, list(inputs), unique, **{**quiet, **more})


def clock() -> str:
    """The time of day where the server is, for `saved` lines."""
    return datetime.now(UTC).astimezone().strftime("%H:%M:%S")
