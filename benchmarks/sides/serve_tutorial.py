"""The usual tutorial server, for comparison: FastAPI, one model, a thread per request, TextIteratorStreamer.

python -m benchmarks.sides.serve_tutorial FOLDER PORT
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from threading import Thread
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer


def build(folder: str) -> FastAPI:
    """The application."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def complete(body: dict[str, Any]) -> StreamingResponse:
        inputs = tokenizer.apply_chat_template(
            body["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        arguments = {**inputs, "streamer": streamer, "max_new_tokens": body["max_tokens"], "do_sample": False}
        Thread(target=model.generate, kwargs=arguments).start()

        def events() -> Iterator[str]:
            for text in streamer:
                yield _event({"content": text}, None)
            yield _event({}, "length")
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def _event(delta: dict[str, str], finish: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta, 'finish_reason': finish}]})}\n\n"


if __name__ == "__main__":
    uvicorn.run(build(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
