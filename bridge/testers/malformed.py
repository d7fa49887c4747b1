"""Requests that Gradio itself stumbles over: an answer and a line in the log instead of a failure and a stack."""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from starlette.requests import Request

from bridge.testers.texts import FALLBACK, text

log = logging.getLogger(__name__)


async def refuse(request: Request, error: Exception) -> JSONResponse:
    """The answer to a request that no page sends.

    What goes wrong in a handler of the page never comes here: it runs in Gradio's queue.
    """
    log.warning("a malformed request to %s was refused: %s", request.url.path, type(error).__name__)
    return JSONResponse({"error": "malformed request"}, status_code=400)


STUMBLES = (FnIndexInferError, LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What looking up, reading and converting a client's values raises."""
HANDLERS = dict.fromkeys(STUMBLES, refuse)


class Blocks(gr.Blocks):
    """Gradio's, but a value that a component can't hold, such as a choice that there is none of, is a notice."""

    async def preprocess_data(self, *arguments: Any, **more: Any) -> list[Any]:
        """The values that a handler gets."""
        try:
            values: list[Any] = await super().preprocess_data(*arguments, **more)
        except (gr.Error, TypeError, ValueError, AttributeError, LookupError) as error:
            log.warning("an event with a value that its component can't hold was refused: %s", type(error).__name__)
            raise gr.Error(text(FALLBACK, "trouble.input"), print_exception=False) from error
        return values


class Bubble(gr.EventData):
    """A click on a bubble of a chat; gr.SelectData and gr.LikeData fail where an event says nothing of it.

    Attributes:
        index: which bubble.
        liked: whether it was the thumb that points up.
    """

    def __init__(self, target: Any, _data: Any) -> None:
        said = _data if isinstance(_data, dict) else {}
        super().__init__(target, said)
        self.index: Any = said.get("index")
        self.liked: Any = said.get("liked")
