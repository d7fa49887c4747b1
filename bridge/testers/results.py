"""What people say beside what the machine says, and the defects that were found."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates, choices
from bridge.testers.texts import error_name, text
from chatmill.common.v1 import Message, Role
from chatmill.eval.v1 import (
    Agreement,
    Calibration,
    Defect,
    DefectStatus,
    ErrorClass,
    GetAgreementResponse,
    HumanScore,
    Interval,
)

STATUSES = {
    "open": DefectStatus.DEFECT_STATUS_OPEN,
    "confirmed": DefectStatus.DEFECT_STATUS_CONFIRMED,
    "fixed": DefectStatus.DEFECT_STATUS_FIXED,
    "rejected": DefectStatus.DEFECT_STATUS_REJECTED,
}
STATUS_NAMES = {value: name for name, value in STATUSES.items()}
NONE = "–"
COLUMNS = (
    "model", "human_pass", "machine_pass", "human_errors", "machine_errors", "thumbs", "marks", "wins", "defects",
    "latency", "sessions",
)  # fmt: skip


class ResultsPanel:
    """Scores and agreement.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_classes="cm-panel"):
            words.add_made(
                gr.HTML(),
                lambda code: {"value": shown.heading(text(code, "results.heading"), text(code, "results.explain"))},
            )
            self.scores = gr.HTML(elem_id="scores")
            self.evaluation = words.add(gr.Dropdown(elem_id="evaluation", filterable=False), label="results.evaluation")
            self.agreement = gr.HTML(elem_id="agreement")
            self.refresh = words.add(gr.Button(size="sm", elem_id="results-refresh"), value="results.refresh")

    @property
    def outputs(self) -> list[Any]:
        """What `fill` updates."""
        return [self.scores, self.evaluation, self.agreement]

    async def fill(self, evaluation: str | None, classes: list[ErrorClass], language: str) -> Updates:
        """The newest numbers. Raises ChatmillErrors."""
        scores = await self._desk.scores()
        done = [entry for entry in await self._desk.evaluations() if entry.HasField("candidate")]
        named = {entry.name: f"{entry.suite} · {entry.candidate.target} · {entry.name}" for entry in done}
        chosen = evaluation if evaluation in named else next(iter(named), "")
        found = await self._desk.agreement(chosen)
        options = [(text(language, "results.all"), ""), *((line, name) for name, line in named.items())]
        return {
            self.scores: _scores(scores, classes, language),
            self.evaluation: gr.update(choices=options, value=chosen),
            self.agreement: _agreement(found, language),
        }


def _scores(scores: list[HumanScore], classes: list[ErrorClass], language: str) -> str:
    if not scores:
        return f'<p class="cm-small">{shown.plain(text(language, "results.none"))}</p>'
    head = [text(language, f"results.{key}") for key in COLUMNS]
    rows = [_row(score) for score in scores]
    return shown.table(head, rows) + _errors(scores, classes, language)


def _row(score: HumanScore) -> list[str]:
    marks = [_mark(score, name) for name in ("mean_correct", "mean_helpful", "mean_tone")]
    votes = score.tie_count + score.both_bad_count
    return [
        shown.name_of(score.model),
        _rate(score, "pass_rate", score.pass_rate_interval, score.passed_count + score.failed_count),
        _rate(score, "machine_pass_rate", score.machine_pass_rate_interval),
        f"{score.flagged_count / score.reply_count:.0%}, n={score.reply_count}" if score.reply_count else NONE,
        f"{score.machine_error_rate:.0%}" if score.HasField("machine_error_rate") else NONE,
        f"{score.thumb_up_count} / {score.thumb_down_count}",
        " / ".join(marks),
        _rate(score, "win_rate", score.win_rate_interval, score.win_count + score.loss_count)
        + (f" +{votes}" if votes else ""),
        str(score.defect_count),
        f"{score.first_token_p50_ms:.0f} / {score.total_p95_ms:.0f} ms" if score.reply_count else NONE,
        f"{score.finished_count}/{score.session_count}",
    ]


def _mark(score: HumanScore, name: Any) -> str:
    return f"{getattr(score, name):.1f}" if score.HasField(name) else NONE


def _errors(scores: list[HumanScore], classes: list[ErrorClass], language: str) -> str:
    meanings = {entry.name: entry.meaning for entry in classes}
    lines = []
    for score in scores:
        counted = sorted(score.errors.items(), key=lambda entry: -entry[1])
        if counted:
            told = ", ".join(f"{error_name(language, name, meanings.get(name, ''))} {n}" for name, n in counted)
            lines.append(f"<li>{shown.plain(shown.name_of(score.model))}: {shown.plain(told)}</li>")
    head = shown.plain(text(language, "results.errors"))
    return f'<p class="cm-small">{head}</p><ul>{"".join(lines)}</ul>' if lines else ""


def _rate(message: Any, name: str, interval: Interval, count: int = 0) -> str:
    if not message.HasField(name):
        return NONE
    shown_count = f", n={count}" if count else ""
    return f"{getattr(message, name):.0%} ({interval.low:.0%}–{interval.high:.0%}{shown_count})"


def _agreement(found: GetAgreementResponse, language: str) -> str:
    head = [text(language, f"results.{key}") for key in ("raters", "items", "raw", "kappa")]
    pairs = (
        ("human_human", found.human_human),
        ("machine_human", found.machine_human),
        ("judge_human", found.judge_human),
    )
    rows = [[text(language, f"results.{name}"), *_cells(pair)] for name, pair in pairs]
    advice = f'<p class="cm-small">{shown.plain(found.advice)}</p>' if found.advice else ""
    title = f"<h4>{shown.plain(text(language, 'results.agreement'))}</h4>"
    return title + shown.table(head, rows) + advice + _calibration(found.machine, language)


def _cells(pair: Agreement) -> list[str]:
    if not pair.item_count:
        return ["0", NONE, NONE]
    kappa = f"{pair.kappa:.2f}" if pair.HasField("kappa") else NONE
    if pair.HasField("kappa_interval"):
        kappa += f" ({pair.kappa_interval.low:.2f}–{pair.kappa_interval.high:.2f})"
    return [str(pair.item_count), f"{pair.raw:.0%}", kappa]


def _calibration(found: Calibration, language: str) -> str:
    lines = []
    for key, name in (("results.tpr", "true_positive_rate"), ("results.tnr", "true_negative_rate")):
        if found.HasField(name):  # type: ignore[arg-type]
            lines.append(f"{text(language, key)}: {getattr(found, name):.0%}")
    if found.HasField("machine_pass_rate"):
        lines.append(f"{text(language, 'results.machine_pass')}: {found.machine_pass_rate:.1%}")
    corrected = found.note
    if found.HasField("calibrated_pass_rate"):
        low, high = found.calibrated_interval.low, found.calibrated_interval.high
        corrected = f"{found.calibrated_pass_rate:.1%} ({low:.1%}–{high:.1%})"
    lines.append(f"{text(language, 'results.calibrated')}: {corrected}")
    return "".join(f'<p class="cm-small">{shown.plain(line)}</p>' for line in lines)


class DefectsPanel:
    """Defects with their status.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        with gr.Column(elem_classes="cm-panel"):
            words.add_made(gr.HTML(), lambda code: {"value": shown.heading(text(code, "defects.heading"))})
            self.none = gr.HTML()
            self.list = gr.Radio(elem_id="defects", elem_classes="cm-list", show_label=False, container=False)
            with gr.Column(visible=False) as self.fields:
                self.card = gr.HTML(elem_id="defect-card")
                self.note = words.add(gr.Textbox(max_length=1000, elem_id="defect-note"), label="defects.note")
                self.status = words.add_made(
                    gr.Radio(elem_id="defect-status"),
                    lambda code: {
                        "label": text(code, "defects.status"),
                        "choices": choices(code, **{name: f"defects.{name}" for name in STATUSES}),
                    },
                )
                self.draft = words.add(
                    gr.Button(size="sm", elem_id="defect-draft", interactive=False), value="defects.draft"
                )
                self.yaml = gr.Code(language="yaml", visible=False, elem_id="defect-yaml", show_label=False)

    @property
    def outputs(self) -> list[Any]:
        """What this panel updates."""
        return [self.none, self.list, self.fields, self.card, self.note, self.status, self.draft, self.yaml]

    async def fill(self, chosen: str | None, classes: list[ErrorClass], language: str) -> Updates:
        """All defects, the chosen one opened. Raises ChatmillErrors."""
        defects = {defect.name: defect for defect in await self._desk.defects()}
        none = "" if defects else f'<p class="cm-small">{shown.plain(text(language, "defects.none"))}</p>'
        options = [(_title(defect, classes, language), name) for name, defect in defects.items()]
        found = defects.get(chosen or "")
        updates: Updates = {
            self.none: none,
            self.list: gr.update(choices=options, value=chosen if found else None),
            self.fields: gr.update(visible=found is not None),
            self.yaml: gr.update(visible=False),
        }
        if found is not None:
            ready = found.status in (DefectStatus.DEFECT_STATUS_CONFIRMED, DefectStatus.DEFECT_STATUS_FIXED)
            updates |= {
                self.card: _defect(found, language),
                self.note: "",
                self.status: STATUS_NAMES.get(found.status),
                self.draft: gr.update(interactive=ready),
            }
        return updates

    async def scenario(self, name: str) -> Updates:
        """The defect as a scenario file. Raises ChatmillErrors."""
        return {self.yaml: gr.update(visible=True, value=await self._desk.scenario(name))}


def _title(defect: Defect, classes: list[ErrorClass], language: str) -> str:
    meanings = {entry.name: entry.meaning for entry in classes}
    named = [error_name(language, name, meanings.get(name, "")) for name in defect.error_classes]
    parts = [
        text(language, f"severity.{defect.severity}"),
        ", ".join(named) or text(language, "form.broke"),
        text(language, f"defects.{STATUS_NAMES[defect.status]}"),
        _model(defect, language),
        defect.create_time.ToDatetime(tzinfo=UTC).astimezone().strftime("%m-%d %H:%M"),
        _excerpt(defect),
    ]
    return " · ".join(part for part in parts if part)


def _excerpt(defect: Defect) -> str:
    """The beginning of what is wrong, so that one defect is told from another."""
    said = next((message.content for message in reversed(defect.messages) if message.role == Role.ROLE_ASSISTANT), "")
    words = " ".join((defect.evidence or said).split())
    return words if len(words) <= 60 else words[:59] + "…"


def _line(message: Message, language: str) -> str:
    who = text(language, "role.user" if message.role == Role.ROLE_USER else "role.assistant")
    return f'<p class="cm-line"><span class="cm-who">{shown.plain(who)}</span> {shown.plain(message.content)}</p>'


def _model(defect: Defect, language: str) -> str:
    return shown.name_of(defect.model) or text(language, "card.hidden")


def _defect(defect: Defect, language: str) -> str:
    found = text(language, "defects.found", model=_model(defect, language), reporter=defect.reporter)
    said = "".join(_line(message, language) for message in defect.messages)
    rest = "".join(f'<p class="cm-small">{shown.plain(line)}</p>' for line in (defect.evidence, defect.note) if line)
    changes = "".join(
        f"<li>{shown.plain(text(language, f'defects.{STATUS_NAMES[change.status]}'))} · {shown.plain(change.author)}"
        f" {shown.plain(change.note)}</li>"
        for change in defect.changes
    )
    head = f'<p class="cm-small">{shown.plain(found)} · <code>{shown.plain(defect.name)}</code></p>'
    return f'<div class="cm-card">{head}{said}{rest}<ul class="cm-changes">{changes}</ul></div>'
