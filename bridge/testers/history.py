"""The tester's own sessions, to go on with or to look at again."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates
from bridge.testers.start import find
from bridge.testers.texts import text
from chatmill.eval.v1 import GetTestGuideResponse, TestSession


class HistoryPanel:
    """A list of sessions.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_classes="cm-panel"):
            words.add_made(gr.HTML(), lambda code: {"value": shown.heading(text(code, "history.heading"))})
            self.list = gr.Radio(elem_id="sessions", elem_classes="cm-list", show_label=False, container=False)
            self.none = gr.HTML()
            self.refresh = words.add(gr.Button(size="sm", elem_id="history-refresh"), value="history.refresh")

    @property
    def outputs(self) -> list[Any]:
        """What `fill` updates."""
        return [self.list, self.none]

    async def fill(self, tester: str, guide: GetTestGuideResponse, language: str) -> Updates:
        """The sessions of a tester. Raises ChatmillErrors."""
        sessions = await self._desk.sessions(tester) if tester else []
        note = "" if sessions else f'<p class="cm-small">{shown.plain(text(language, "history.none"))}</p>'
        options = [(_line(session, guide, language), session.name) for session in sessions]
        return {self.list: gr.update(choices=options, value=None), self.none: note}


def _line(session: TestSession, guide: GetTestGuideResponse, language: str) -> str:
    when = session.create_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    task = find(guide, session.task)
    mode = "battle" if session.HasField("battle") else "chat"
    state = "finished" if session.HasField("end_time") else "open"
    parts = [
        when,
        task.title if task else session.task,
        text(language, f"start.mode.{mode}"),
        text(language, f"history.{state}"),
        shown.model_line(session, language),
    ]
    return " · ".join(parts)
