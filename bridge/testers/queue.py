"""Machine verdicts to judge again, without being told what the machine said."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates, choices, clock
from bridge.testers.marks import MAX_NOTE, error_choices, saved
from bridge.testers.texts import text
from chatmill.common.v1 import Role
from chatmill.eval.v1 import GetTestGuideResponse, HumanLabel, HumanVerdict, LabelQueueItem

VERDICTS = {
    "pass": HumanVerdict.HUMAN_VERDICT_PASS,
    "fail": HumanVerdict.HUMAN_VERDICT_FAIL,
    "cannot": HumanVerdict.HUMAN_VERDICT_CANNOT_ASSESS,
}
ROLES = {Role.ROLE_USER: "user", Role.ROLE_ASSISTANT: "assistant"}


class QueuePanel:
    """One conversation after the other.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_classes="cm-panel"):
            words.add_made(
                gr.HTML(),
                lambda code: {"value": shown.heading(text(code, "queue.heading"), text(code, "queue.explain"))},
            )
            self.count = gr.HTML(elem_id="queue-count")
            self.item = gr.State("")
            self.seen = gr.State([])
            with gr.Column(visible=False) as self.fields:
                self.card = gr.HTML()
                self.bot = words.add(
                    gr.Chatbot(
                        elem_id="queue-chat", render_markdown=False, allow_tags=False, latex_delimiters=[], buttons=[],
                        group_consecutive_messages=False, height="min(50vh, 480px)",
                    ),
                    label="chat.name",
                )  # fmt: skip
                self.verdict = words.add_made(
                    gr.Radio(elem_id="verdict"),
                    lambda code: {
                        "label": text(code, "queue.verdict"),
                        "choices": choices(code, **{name: f"queue.{name}" for name in VERDICTS}),
                    },
                )
                self.errors = words.add(
                    gr.CheckboxGroup(elem_id="queue-errors", elem_classes="cm-chips"), label="label.errors"
                )
                self.note = words.add(
                    gr.Textbox(lines=2, max_length=MAX_NOTE, elem_id="queue-note"), label="label.note"
                )
                self.saved = gr.HTML()
            self.next = words.add(gr.Button(variant="primary", elem_id="queue-next"), value="queue.next")

    @property
    def inputs(self) -> list[Any]:
        """What `save` takes after the item, in order."""
        return [self.verdict, self.errors, self.note]

    @property
    def outputs(self) -> list[Any]:
        """What this panel updates."""
        return [self.count, self.item, self.seen, self.fields, self.card, self.bot, *self.inputs, self.saved]

    async def advance(self, seen: list[str], author: str, guide: GetTestGuideResponse, language: str) -> Updates:
        """The next item that this page has not shown yet. Raises ChatmillErrors."""
        if not author:
            return {self.count: _line(text(language, "queue.needs_name")), self.fields: gr.update(visible=False)}
        found = await self._desk.queue(author)
        count = _line(text(language, "queue.open", open=found.open_count, done=found.done_count))
        fresh = [item for item in found.items if item.name not in seen]
        if not fresh:
            empty = _line(text(language, "queue.empty"))
            return {self.count: count + empty, self.item: "", self.seen: [], self.fields: gr.update(visible=False)}
        return {self.count: count, self.seen: [*seen, fresh[0].name], **self._item(fresh[0], guide, language)}

    def _item(self, item: LabelQueueItem, guide: GetTestGuideResponse, language: str) -> Updates:
        said = [
            {"role": ROLES[message.role], "content": shown.plain(message.content or "…")}
            for message in item.messages
            if message.role in ROLES
        ]
        return {
            self.item: item.name,
            self.fields: gr.update(visible=True),
            self.card: _card(item, language),
            self.bot: said,
            self.verdict: None,
            self.errors: gr.update(choices=error_choices(list(guide.error_classes), language), value=[]),
            self.note: "",
            self.saved: "",
        }

    async def save(
        self, item: str, author: str, verdict: str | None, errors: list[str], note: str, language: str
    ) -> Updates:
        """Keep a verdict. Raises ChatmillErrors."""
        if not item or verdict is None:
            return {}
        label = HumanLabel(
            subject=item, author=author, verdict=VERDICTS[verdict], error_classes=errors or [], note=note.strip()
        )
        await self._desk.label(label)
        return {self.saved: saved(text(language, "label.saved", time=clock()))}


def _line(words: str) -> str:
    return f'<p class="cm-small">{shown.plain(words)}</p>'


def _card(item: LabelQueueItem, language: str) -> str:
    parts = [f'<div class="cm-card-head"><h3>{shown.plain(item.title)}</h3></div>']
    for key, lines in (("queue.facts", item.facts), ("queue.rules", item.policies)):
        if lines:
            listed = "".join(f"<li>{shown.plain(line)}</li>" for line in lines)
            parts.append(f'<p class="cm-small">{shown.plain(text(language, key))}</p><ul>{listed}</ul>')
    return f'<div class="cm-card">{"".join(parts)}</div>'
