"""The whole page: panels, and what happens on each click. The mesh keeps everything; the browser holds a name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any
from weakref import WeakValueDictionary

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.history import HistoryPanel
from bridge.testers.kit import FORGOTTEN, Localised, Told, Updates, guarded, guarded_stream, merged, on, remembered
from bridge.testers.malformed import Blocks, Bubble
from bridge.testers.marks import FormPanel, LabelPanel
from bridge.testers.queue import QueuePanel
from bridge.testers.results import STATUSES, DefectsPanel, ResultsPanel
from bridge.testers.start import StartPanel
from bridge.testers.talk import MAX_WORDS, VOTES, TalkPanel
from bridge.testers.texts import LANGUAGES, preferred, text
from chatmill.errors import ChatmillError, NotFound
from chatmill.eval.v1 import BattleSide, GetTestGuideResponse, TestSession, Thumb

log = logging.getLogger(__name__)


class Page:
    """The testers' page as a Gradio app.

    Args:
        testers: most replies that are fetched at once; more wait.
    """

    def __init__(self, desk: Desk, testers: int) -> None:
        self._desk = desk
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._words = words = Localised()
        with Blocks(title="Chatmill", analytics_enabled=False, delete_cache=(3600, 3600)) as self.blocks:
            self.saved = gr.BrowserState(dict(FORGOTTEN), storage_key="chatmill-testers", secret="chatmill-testers")  # noqa: S106
            self.session = gr.State("")
            self.selected = gr.State("")
            with gr.Row(elem_id="head"):
                self._head()
                self.language = gr.Radio(
                    [(name, code) for code, name in LANGUAGES.items()],
                    value="en", elem_id="language", show_label=False, container=False, scale=0, min_width=170,
                )  # fmt: skip
            with gr.Tabs(elem_id="tabs"):
                with words.add(gr.Tab("Test", id="test", elem_id="tab-test"), label="tab.test"):
                    self.start = StartPanel(desk, words)
                    with gr.Row(visible=False, elem_id="talk") as self.room:
                        with gr.Column(scale=3, min_width=320):
                            self.talk = TalkPanel(desk, words)
                        with gr.Column(scale=2, min_width=300):
                            self.marks = LabelPanel(desk, words)
                            self.form = FormPanel(desk, words)
                with words.add(gr.Tab("Sessions", id="history"), label="tab.history") as self.history_tab:
                    self.history = HistoryPanel(desk, words)
                with words.add(gr.Tab("Queue", id="queue"), label="tab.queue") as self.queue_tab:
                    self.queue = QueuePanel(desk, words)
                with words.add(gr.Tab("Results", id="results"), label="tab.results") as self.results_tab:
                    self.results = ResultsPanel(desk, words)
                    self.defects = DefectsPanel(desk, words)
            self._bind()
        self.blocks.queue(default_concurrency_limit=testers, max_size=max(64, 4 * testers), api_open=False)

    def _head(self) -> None:
        self._words.add_made(
            gr.HTML(elem_id="brand"),
            lambda code: {
                "value": f'<h1><span class="cm-logo"></span>Chatmill <em>{shown.plain(text(code, "title"))}</em></h1>'
                f'<p class="cm-small">{shown.plain(text(code, "tagline"))}</p>'
            },
        )

    @property
    def _view(self) -> list[Any]:
        """All that a session changes."""
        states = [self.session, self.selected, self.saved, self.start.tester, self.start.box, self.room]
        return [*states, *self.talk.outputs, *self.marks.outputs, *self.form.outputs]

    def _bind(self) -> None:
        start, talk, marks, form, language = self.start, self.talk, self.marks, self.form, self.language
        everything = [language, start.tester, *start.outputs, *self._words.components, *self._view]
        on(self.blocks.load, self._load, [self.saved], everything)
        on(
            language.input,
            self._translate,
            [self.session, self.selected, start.task, start.mode, start.model, self.saved, language],
            everything,
        )
        for trigger in (start.task.input, start.mode.input):
            on(trigger, self._refill, [start.task, start.mode, start.model, language], start.outputs)
        told = [self.session, start.task, start.mode, start.model, self.saved, language]
        on(start.again.tick, self._look_again, told, [*start.outputs, *self._view])
        chosen = [start.tester, start.mode, start.task, start.model, start.consent, self.saved, language]
        on(start.begin.click, self._begin, chosen, self._view, trigger_mode="once")
        for trigger in (talk.send.click, talk.entry.submit):
            on(trigger, self._say, [talk.entry, self.session, language], self._view, trigger_mode="once")
        on(talk.retry.click, self._again, [self.session, language], self._view, trigger_mode="once")
        on(talk.stop.click, self._stop, [self.session], [])
        all_of_it = [*self._view, *start.outputs]
        on(talk.new.click, self._leave, [self.saved, start.task, start.mode, start.model, language], all_of_it)
        on(talk.bot.like, self._like, [self.session, language], self._view)
        for bot, side in ((talk.bot, shown.ONE), (talk.left, shown.LEFT), (talk.right, shown.RIGHT)):
            on(bot.select, self._selecting(side), [self.session, language], [self.selected, *marks.outputs])
        for name, button in talk.votes.items():
            on(button.click, self._voting(name), [talk.leaked, self.session, language], self._view, trigger_mode="once")
        triggers = {
            "thumb": (marks.thumb, marks.thumb.input),
            "error_classes": (marks.errors, marks.errors.input),
            "evidence": (marks.evidence, marks.evidence.blur),
            "note": (marks.note, marks.note.blur),
        }
        for name, (field, trigger) in triggers.items():
            said = [self.session, self.selected, field, language]
            on(trigger, self._labelling(name), said, [marks.saved, talk.bot])
        for field in form.inputs:
            on(field.input, self._fill_in, [self.session, *form.inputs, language], [form.saved])
        on(form.send.click, self._finish, [self.session, *form.inputs, language], self._view, trigger_mode="once")
        self._bind_tabs()

    def _bind_tabs(self) -> None:
        history, queue, results, defects, language = self.history, self.queue, self.results, self.defects, self.language
        for trigger in (self.history_tab.select, history.refresh.click):
            on(trigger, self._list, [self.start.tester, language], history.outputs)
        on(history.list.input, self._open, [history.list, self.saved, language], self._view).then(
            None, None, None, js="() => document.querySelector('#tabs button[role=tab]').click()"
        )
        for trigger in (self.queue_tab.select, queue.next.click):
            on(trigger, self._advance, [queue.seen, self.start.tester, language], queue.outputs)
        for field in (queue.verdict.input, queue.errors.input, queue.note.blur):
            on(field, self._judge, [queue.item, self.start.tester, *queue.inputs, language], [queue.saved])
        outputs = [*results.outputs, *defects.outputs]
        for trigger in (self.results_tab.select, results.refresh.click, results.evaluation.input):
            on(trigger, self._results, [results.evaluation, defects.list, language], outputs)
        on(defects.list.input, self._defects, [defects.list, language], defects.outputs)
        on(
            defects.status.input,
            self._set_defect,
            [defects.list, defects.status, defects.note, self.start.tester, language],
            defects.outputs,
        )
        on(defects.draft.click, self._draft, [defects.list, language], [defects.yaml])

    def _lock(self, session: str) -> asyncio.Lock:
        """One click of a session after the other, or an older form could be kept last."""
        return self._locks.setdefault(session, asyncio.Lock())

    async def _load(self, saved: dict[str, str], request: gr.Request) -> Updates:
        saved = remembered(saved)
        language = saved["language"] or preferred(request.headers.get("accept-language", ""))
        words = {**self._words.updates(language), self.language: language}
        try:
            found = await self._restore(saved, language)
            return merged(words, {self.start.tester: saved["tester"]}, found)
        except ChatmillError as error:
            log.warning("the page could not be filled: %s: %s", error.code, error.message)
            return merged(words, self.start.closed(text(language, "trouble.load", message=error.message)))

    async def _look_again(
        self, session: str, task: str, mode: str, model: str, saved: dict[str, str], language: str
    ) -> Updates:
        """The start panel of a page that has nothing to test yet, and the session that could not be shown before."""
        saved = remembered(saved)
        try:
            if saved["session"] and not session:
                return await self._restore(saved, language, task, mode, model)
            return await self.start.fill(await self._desk.guide(language), task, mode, model, language)
        except ChatmillError as error:
            return self.start.closed(text(language, "trouble.load", message=error.message))

    async def _restore(
        self, saved: dict[str, str], language: str, task: str | None = None, mode: str = "chat", model: str = ""
    ) -> Updates:
        """The start panel and, if there is one, the saved session."""
        guide = await self._desk.guide(language)
        updates = await self.start.fill(guide, task, mode, model, language)
        if not saved["session"]:
            return updates
        try:
            return merged(updates, self._shown(await self._desk.session(saved["session"]), guide, saved, language))
        except NotFound:
            gr.Warning(shown.plain(text(language, "trouble.session")))
            return {**updates, self.saved: {**saved, "session": ""}}

    @guarded
    async def _translate(
        self, session: str, selected: str, task: str, mode: str, model: str, saved: dict[str, str], language: str
    ) -> Updates:
        saved = {**remembered(saved), "language": language}
        words = {**self._words.updates(language), self.saved: saved}
        if saved["session"] and not session:
            return merged(words, await self._restore(saved, language, task, mode, model))
        guide = await self._desk.guide(language)
        updates = merged(words, await self.start.fill(guide, task, mode, model, language))
        if session:
            updates = merged(updates, self._shown(await self._desk.session(session), guide, None, language, selected))
        return updates

    @guarded
    async def _refill(self, task: str, mode: str, model: str, language: str) -> Updates:
        return await self.start.fill(await self._desk.guide(language), task, mode, model, language)

    def _shown(
        self,
        session: TestSession,
        guide: GetTestGuideResponse,
        saved: dict[str, str] | None,
        language: str,
        selected: str = "",
    ) -> Updates:
        """Everything as the session is; the newest reply is selected where none is named."""
        turns = shown.in_force(session)
        chosen = selected or (turns[-1].name if turns else "")
        updates: Updates = {
            self.session: session.name,
            self.selected: chosen,
            self.start.tester: session.tester,
            self.start.box: gr.update(visible=False),
            self.room: gr.update(visible=True),
            **self.talk.view(session, guide, language),
            **self.marks.view(session, guide, chosen, language),
            **self.form.view(session, language),
        }
        if saved is not None:
            updates[self.saved] = {**saved, "session": session.name, "tester": session.tester, "language": language}
        return updates

    async def _now(self, session: str, language: str, selected: str = "") -> Updates:
        found, guide = await self._desk.session(session), await self._desk.guide(language)
        return self._shown(found, guide, None, language, selected)

    @guarded
    async def _begin(
        self, tester: str, mode: str, task: str, model: str, consent: bool, saved: dict[str, str], language: str
    ) -> Updates:
        if not consent:
            raise Told("start.needs_consent")
        name = " ".join(tester.split())
        if mode == "battle":
            session = await self._desk.begin_battle(name, task, language)
        else:
            session = await self._desk.begin(name, task, model or "", language)
        return self._shown(session, await self._desk.guide(language), remembered(saved), language)

    @guarded_stream
    async def _say(self, words: str, session: str, language: str) -> AsyncGenerator[Updates, None]:
        if not words.strip():
            yield {}
            return
        if len(words) > MAX_WORDS:  # the browser's own limit can be gone round
            raise Told("chat.too_long", most=MAX_WORDS)
        try:
            async with aclosing(self.talk.say(words.strip(), await self._desk.session(session), language)) as stream:
                async for updates in stream:
                    yield updates
            yield await self._now(session, language)
        except (ChatmillError, Told):
            yield self.talk.idle(words)
            raise

    @guarded_stream
    async def _again(self, session: str, language: str) -> AsyncGenerator[Updates, None]:
        try:
            async with aclosing(self.talk.again(await self._desk.session(session), language)) as stream:
                async for updates in stream:
                    yield updates
            yield await self._now(session, language)
        except (ChatmillError, Told):
            yield self.talk.idle("")
            raise

    async def _stop(self, session: str) -> None:
        self.talk.cut_off(session)

    @guarded
    async def _leave(self, saved: dict[str, str], task: str, mode: str, model: str, language: str) -> Updates:
        guide = await self._desk.guide(language)
        return {
            self.session: "",
            self.selected: "",
            self.saved: {**remembered(saved), "session": ""},
            self.start.box: gr.update(visible=True),
            self.room: gr.update(visible=False),
            **await self.start.fill(guide, task, mode, model, language),
        }

    @guarded
    async def _like(self, data: Bubble, session: str, language: str) -> Updates:
        thumbs = {True: Thumb.THUMB_UP, False: Thumb.THUMB_DOWN}
        async with self._lock(session):
            found = await self._desk.session(session)
            selected = _turn_at(found, data.index)
            if selected:
                liked = thumbs.get(data.liked) if isinstance(data.liked, bool) else None
                await self.marks.set_thumb(found, selected, liked or Thumb.THUMB_UNSPECIFIED)
            return await self._now(session, language, selected)

    def _selecting(self, side: BattleSide.ValueType) -> Any:
        @guarded
        async def select(data: Bubble, session: str, language: str) -> Updates:
            found = await self._desk.session(session)
            selected = _turn_at(found, data.index, side)
            if not selected:
                return {}
            guide = await self._desk.guide(language)
            return {self.selected: selected, **self.marks.view(found, guide, selected, language)}

        return select

    def _labelling(self, field: str) -> Any:
        @guarded
        async def label(session: str, selected: str, value: Any, language: str) -> Updates:
            async with self._lock(session):
                found = await self._desk.session(session)
                updates = await self.marks.save(found, selected, field, value, language) if selected else {}
                if updates:
                    now = shown.feedback(await self._desk.session(session))
                    updates[self.talk.bot] = gr.update(feedback_value=now)
                return updates

        return label

    @guarded
    async def _fill_in(self, session: str, *said: Any) -> Updates:
        *values, language = said
        async with self._lock(session):
            return await self.form.save(await self._desk.session(session), values, language, send=False)

    @guarded
    async def _finish(self, session: str, *said: Any) -> Updates:
        *values, language = said
        async with self._lock(session):
            await self.form.save(await self._desk.session(session), values, language, send=True)
            return await self._now(session, language)

    def _voting(self, name: str) -> Any:
        @guarded
        async def vote(leaked: bool, session: str, language: str) -> Updates:
            found = await self._desk.vote(session, VOTES[name], leaked=leaked)
            return self._shown(found, await self._desk.guide(language), None, language)

        return vote

    @guarded
    async def _list(self, author: str, language: str) -> Updates:
        return await self.history.fill(author, await self._desk.guide(language), language)

    @guarded
    async def _open(self, session: str, saved: dict[str, str], language: str) -> Updates:
        guide = await self._desk.guide(language)
        return self._shown(await self._desk.session(session), guide, remembered(saved), language)

    @guarded
    async def _advance(self, seen: list[str], author: str, language: str) -> Updates:
        return await self.queue.advance(seen, author, await self._desk.guide(language), language)

    @guarded
    async def _judge(
        self, item: str, author: str, verdict: str | None, errors: list[str], note: str, language: str
    ) -> Updates:
        async with self._lock(item):
            return await self.queue.save(item, author, verdict, errors, note, language)

    @guarded
    async def _results(self, evaluation: str | None, chosen: str | None, language: str) -> Updates:
        classes = list((await self._desk.guide(language)).error_classes)
        scores = await self.results.fill(evaluation, classes, language)
        return {**scores, **await self.defects.fill(chosen, classes, language)}

    @guarded
    async def _defects(self, chosen: str, language: str) -> Updates:
        return await self.defects.fill(chosen, list((await self._desk.guide(language)).error_classes), language)

    @guarded
    async def _set_defect(self, chosen: str, status: str, note: str, author: str, language: str) -> Updates:
        if status not in STATUSES:
            raise Told("trouble.input")
        await self._desk.set_defect(chosen, STATUSES[status], author, note)
        return await self.defects.fill(chosen, list((await self._desk.guide(language)).error_classes), language)

    @guarded
    async def _draft(self, chosen: str, language: str) -> Updates:
        return await self.defects.scenario(chosen)


def _turn_at(session: TestSession, index: Any, side: BattleSide.ValueType = shown.ONE) -> str:
    """The turn that a bubble of the chat belongs to: a question and its reply are two bubbles."""
    bubble = index[0] if isinstance(index, list | tuple) and index else index
    turns = shown.in_force(session, side)
    return turns[bubble // 2].name if isinstance(bubble, int) and 0 <= bubble // 2 < len(turns) else ""
