"""The first panel: who tests what, and what is agreed to."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates, choices
from bridge.testers.texts import text
from chatmill.eval.v1 import GetTestGuideResponse, TestTask

LOOK_AGAIN_SECONDS = 3.0
"""A page that was opened before there is anything to test, while the mesh starts, say, looks again after so long."""


class StartPanel:
    """Pseudonym, mode, task, model, consent.

    Args:
        words: collects what follows the language.

    Attributes:
        again: ticks as long as nothing can be begun.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_id="start", elem_classes="cm-panel") as self.box:
            self.heading = words.add_made(gr.HTML(), lambda code: {"value": shown.heading(text(code, "start.heading"))})
            with gr.Row():
                self.tester = words.add(
                    gr.Textbox(max_length=32, elem_id="tester", min_width=200),
                    label="start.tester",
                    info="start.tester.hint",
                )
                self.mode = words.add_made(
                    gr.Radio(value="chat", elem_id="mode", min_width=280),
                    lambda code: {
                        "choices": choices(code, chat="start.mode.chat", battle="start.mode.battle"),
                        "label": text(code, "start.mode"),
                        "info": text(code, "start.mode.hint"),
                    },
                )
            self.task = words.add(gr.Radio(elem_id="task", elem_classes="cm-tasks"), label="start.task")
            self.card = gr.HTML(elem_id="task-preview")
            self.model = words.add(gr.Dropdown(elem_id="model", filterable=False), label="start.model")
            self.notice = gr.HTML(elem_id="start-notice")
            self.consent_text = gr.HTML(elem_id="consent-text")
            self.consent = words.add(gr.Checkbox(elem_id="consent"), label="start.consent")
            self.begin = words.add(gr.Button(variant="primary", size="lg", elem_id="begin"), value="start.begin")
            self.again = gr.Timer(LOOK_AGAIN_SECONDS, active=False)

    @property
    def outputs(self) -> list[Any]:
        """What `fill` and `closed` update."""
        head = [self.heading, self.task, self.card, self.model, self.notice]
        return [*head, self.consent_text, self.mode, self.begin, self.again]

    async def fill(
        self, guide: GetTestGuideResponse, task: str | None, mode: str, model: str, language: str
    ) -> Updates:
        """The choices there are now.

        Args:
            task: id of the chosen task; the first one where it is none.
        """
        models = await self._desk.models()
        chosen = find(guide, task) or guide.tasks[0]
        battle = mode == "battle"
        problem = ""
        if not models:
            problem = text(language, "start.no_models")
        elif battle and len(models) < 2:
            problem = text(language, "start.one_model")
        named = [(shown.name_of(name), name) for name in models]
        return {
            self.heading: shown.heading(text(language, "start.heading"), shown.agent(guide, language)),
            self.task: gr.update(choices=[(task.title, task.id) for task in guide.tasks], value=chosen.id),
            self.card: shown.task_card(guide, chosen, None, language, rules=False),
            self.model: gr.update(
                choices=[(text(language, "start.model.drawn"), ""), *named],
                value=model if model in models else "",
                visible=not battle,
            ),
            self.notice: _notice(problem),
            self.consent_text: f'<p class="cm-small">{shown.plain(guide.consent_text)}</p>',
            self.begin: gr.update(interactive=not problem),
            self.again: gr.update(active=bool(problem)),
        }

    def closed(self, problem: str) -> Updates:
        """The panel when nothing can be begun, with why."""
        return {
            self.notice: _notice(problem),
            self.begin: gr.update(interactive=False),
            self.again: gr.update(active=True),
        }


def _notice(problem: str) -> str:
    return f'<p class="cm-notice">{shown.plain(problem)}</p>' if problem else ""


def find(guide: GetTestGuideResponse, task: str | None) -> TestTask | None:
    """The task of that id, None where there is none."""
    return next((entry for entry in guide.tasks if entry.id == task), None)
