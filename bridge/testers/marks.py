"""What a tester says: about one reply, and at the end about the whole session. Each click is one call to the mesh."""

from __future__ import annotations

from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates, choices, clock
from bridge.testers.texts import error_name, text
from chatmill.eval.v1 import EndForm, ErrorClass, GetTestGuideResponse, GoalMet, HumanLabel, TestSession, Thumb

HIDDEN_GROUPS = frozenset(("transport",))
"""Mistakes that the page measures itself, so that nobody has to click them."""
THUMBS = {"up": Thumb.THUMB_UP, "down": Thumb.THUMB_DOWN, "none": Thumb.THUMB_UNSPECIFIED}
THUMB_NAMES = {value: name for name, value in THUMBS.items()}
GOALS = {"yes": GoalMet.GOAL_MET_YES, "partly": GoalMet.GOAL_MET_PARTLY, "no": GoalMet.GOAL_MET_NO}
GOAL_NAMES = {value: name for name, value in GOALS.items()}
SCALE = [str(mark) for mark in range(1, 6)]
MARKS = ("correct", "helpful", "tone", "confidence")
MAX_NOTE = 4000
SIDES = {shown.LEFT: "chat.left", shown.RIGHT: "chat.right"}


def error_choices(classes: list[ErrorClass], language: str) -> list[tuple[str, str]]:
    """Classes of error that a person can find, the worst first."""
    order = {"critical": 0, "major": 1, "minor": 2}
    visible = [entry for entry in classes if entry.group not in HIDDEN_GROUPS]
    visible.sort(key=lambda entry: order.get(entry.severity, 3))
    return [(error_name(language, entry.name, entry.meaning), entry.name) for entry in visible]


class LabelPanel:
    """One reply: thumb, kinds of mistakes, the wrong passage, a note.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_id="label", elem_classes="cm-panel"):
            self.heading = gr.HTML(elem_id="label-heading")
            with gr.Column(visible=False) as self.fields:
                self.thumb = words.add_made(
                    gr.Radio(elem_id="thumb", show_label=False, container=False),
                    lambda code: {"choices": choices(code, **{name: f"label.thumb.{name}" for name in THUMBS})},
                )
                self.errors = words.add(
                    gr.CheckboxGroup(elem_id="errors", elem_classes="cm-chips"), label="label.errors"
                )
                self.evidence = words.add(
                    gr.Textbox(lines=1, max_lines=4, max_length=MAX_NOTE, elem_id="evidence"),
                    label="label.evidence",
                    placeholder="label.evidence.hint",
                )
                self.note = words.add(
                    gr.Textbox(lines=2, max_lines=6, max_length=MAX_NOTE, elem_id="note"), label="label.note"
                )
            self.saved = gr.HTML(elem_id="label-saved")

    @property
    def inputs(self) -> list[Any]:
        """The fields."""
        return [self.thumb, self.errors, self.evidence, self.note]

    @property
    def outputs(self) -> list[Any]:
        """What this panel updates."""
        return [self.heading, self.fields, *self.inputs, self.saved]

    def view(self, session: TestSession, guide: GetTestGuideResponse, selected: str, language: str) -> Updates:
        """The panel for the turn of that name."""
        found = shown.find_turn(session, selected)
        head = text(language, "label.heading")
        if found is None:
            hint = "label.none.battle" if session.HasField("battle") else "label.none"
            return {
                self.heading: shown.heading(head, text(language, hint)),
                self.fields: gr.update(visible=False),
                self.saved: "",
            }
        turn, place, count = found
        label = shown.own_label(session, selected)
        number = text(language, "label.reply", number=place, count=count)
        if turn.side in SIDES:
            number = f"{text(language, SIDES[turn.side])} · {number}"
        quote = turn.reply.content.replace("\n", " ")
        excerpt = quote if len(quote) <= 120 else quote[:119] + "…"
        return {
            self.heading: shown.heading(head, f"{number}: {excerpt}" if excerpt else number),
            self.fields: gr.update(visible=True),
            self.thumb: THUMB_NAMES[label.thumb] if label.sequence else None,
            self.errors: gr.update(
                choices=error_choices(list(guide.error_classes), language), value=list(label.error_classes)
            ),
            self.evidence: label.evidence,
            self.note: label.note,
            self.saved: "",
        }

    async def save(self, session: TestSession, selected: str, field: str, value: Any, language: str) -> Updates:
        """Keep what one field says, if it differs from what is kept; the rest of the label stays.

        Raises:
            ChatmillError: it could not be kept.
        """
        label = HumanLabel()
        label.CopyFrom(shown.own_label(session, selected))
        if field == "thumb":
            label.thumb = THUMBS[value or "none"]
        elif field == "error_classes":
            label.error_classes[:] = value or []
        elif field == "evidence":
            label.evidence = (value or "").strip()
        else:
            label.note = (value or "").strip()
        if label == shown.own_label(session, selected):
            return {}
        defect = await self._desk.label(label)
        key = "label.defect" if defect else "label.saved"
        return {self.saved: saved(text(language, key, time=clock()))}

    async def set_thumb(self, session: TestSession, selected: str, thumb: Thumb.ValueType) -> None:
        """Keep a thumb that was clicked at the reply itself; the rest of the label stays. Raises ChatmillErrors."""
        label = HumanLabel()
        label.CopyFrom(shown.own_label(session, selected))
        label.thumb = thumb
        await self._desk.label(label)


def saved(line: str) -> str:
    """The line that says that something is kept."""
    return f'<p class="cm-saved">✓ {shown.plain(line)}</p>'


class FormPanel:
    """The form at the end.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_id="form", elem_classes="cm-panel") as self.box:
            words.add_made(gr.HTML(), lambda code: {"value": shown.heading(text(code, "form.heading"))})
            self.goal = self._radio(words, "goal", "form.goal", yes="form.yes", partly="form.partly", no="form.no")
            self.broke = self._radio(words, "broke", "form.broke", yes="form.yes", no="form.no")
            with gr.Row(elem_id="marks"):
                self.marks = {
                    name: words.add(
                        gr.Radio(SCALE, elem_id=f"mark-{name}", elem_classes="cm-scale", min_width=150),
                        label=f"form.{name}",
                    )
                    for name in MARKS
                }
            words.add_made(
                gr.HTML(), lambda code: {"value": f'<p class="cm-small">{shown.plain(text(code, "form.scale"))}</p>'}
            )
            self.escalate = self._radio(words, "escalate", "form.escalate", yes="form.yes", no="form.no")
            self.send = words.add(gr.Button(variant="primary", elem_id="finish"), value="form.send")
            self.saved = gr.HTML(elem_id="form-saved")

    def _radio(self, words: Localised, name: str, label: str, **options: str) -> Any:
        return words.add_made(
            gr.Radio(elem_id=name),
            lambda code: {"label": text(code, label), "choices": choices(code, **options)},
        )

    @property
    def inputs(self) -> list[Any]:
        """What `save` takes, in order."""
        return [self.goal, self.broke, self.escalate, *self.marks.values()]

    @property
    def outputs(self) -> list[Any]:
        """What this panel updates."""
        return [self.box, *self.inputs, self.send, self.saved]

    def view(self, session: TestSession, language: str) -> Updates:
        """The form as it is kept."""
        form = shown.own_label(session, session.name).form
        given = {name: str(getattr(form, name)) if form.HasField(name) else None for name in MARKS}  # type: ignore[arg-type]
        return {
            self.box: gr.update(visible=not session.HasField("battle")),
            self.goal: GOAL_NAMES.get(form.goal_met),
            self.broke: _yes_no(form, "broke_it"),
            self.escalate: _yes_no(form, "would_escalate"),
            **{radio: given[name] for name, radio in self.marks.items()},
            self.send: gr.update(visible=not form.sent, interactive=bool(session.turns)),
            self.saved: "",
        }

    async def save(self, session: TestSession, values: list[str | None], language: str, *, send: bool) -> Updates:
        """Keep the form as it is. Raises ChatmillErrors."""
        goal, broke, escalate, *marks = values
        known = shown.own_label(session, session.name)
        form = EndForm(
            goal_met=GOALS[goal] if goal else GoalMet.GOAL_MET_UNSPECIFIED,
            broke_it=None if broke is None else broke == "yes",
            would_escalate=None if escalate is None else escalate == "yes",
            sent=send or known.form.sent,
            **{name: int(mark) for name, mark in zip(MARKS, marks, strict=True) if mark is not None},
        )
        defect = await self._desk.label(HumanLabel(subject=session.name, author=session.tester, form=form))
        key = "label.defect" if defect else "label.saved"
        return {self.saved: saved(text(language, key, time=clock()))}


def _yes_no(form: EndForm, name: Any) -> str | None:
    return ("yes" if getattr(form, name) else "no") if form.HasField(name) else None
