"""The conversation: one chat, or two side by side with a vote; replies stream in, and each is kept when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import gradio as gr

from bridge.testers import shown
from bridge.testers.desk import Desk
from bridge.testers.kit import Localised, Updates
from bridge.testers.shown import LEFT, ONE, RIGHT
from bridge.testers.start import find
from bridge.testers.talking import Reply, fetch, history, paced, ticking
from bridge.testers.texts import text
from chatmill.common.v1 import Message, Role
from chatmill.eval.v1 import BattleSide, GetTestGuideResponse, TestSession, TestSessionState, TestTurn, Vote

MAX_WORDS = 8000
"""Characters of one question; a browser holds more, a customer does not write more."""

VOTES = {
    "left": Vote.VOTE_LEFT,
    "tie": Vote.VOTE_TIE,
    "both_bad": Vote.VOTE_BOTH_BAD,
    "right": Vote.VOTE_RIGHT,
}


class TalkPanel:
    """Task card, conversation, input line, vote.

    Args:
        words: collects what follows the language.
    """

    def __init__(self, desk: Desk, words: Localised) -> None:
        self._desk = desk
        self._asking: dict[str, list[asyncio.Task[None]]] = {}
        self.card = gr.HTML(elem_id="card")
        plain: dict[str, Any] = {
            "render_markdown": False,
            "sanitize_html": True,
            "allow_tags": False,
            "latex_delimiters": [],
            "group_consecutive_messages": False,
            "layout": "bubble",
            "buttons": [],
            "height": "min(56vh, 560px)",
        }
        self.bot = words.add(gr.Chatbot(elem_id="chat", **plain), label="chat.name", placeholder="chat.empty")
        with gr.Row(visible=False, elem_id="battle") as self.pair:
            self.left = words.add(gr.Chatbot(elem_id="left", min_width=260, **plain), label="chat.left")
            self.right = words.add(gr.Chatbot(elem_id="right", min_width=260, **plain), label="chat.right")
        with gr.Row(elem_id="entry-row") as self.entry_row:
            self.entry = words.add(
                gr.Textbox(
                    show_label=False, container=False, lines=1, max_lines=5, max_length=MAX_WORDS,
                    elem_id="entry", scale=8, min_width=160, autofocus=False,
                ),
                placeholder="chat.placeholder",
            )  # fmt: skip
            self.send = words.add(
                gr.Button(variant="primary", elem_id="send", scale=1, min_width=84), value="chat.send"
            )
            self.stop = words.add(
                gr.Button(variant="stop", visible=False, elem_id="stop", scale=1, min_width=84), value="chat.stop"
            )
        self.notice = gr.HTML(elem_id="talk-notice")
        with gr.Column(visible=False, elem_id="vote", elem_classes="cm-panel") as self.ballot:
            words.add_made(gr.HTML(), lambda code: {"value": shown.heading(text(code, "vote.heading"))})
            with gr.Row(elem_id="vote-row"):
                self.votes = {
                    name: words.add(
                        gr.Button(elem_id=f"vote-{name}", min_width=120, variant="secondary"), value=f"vote.{name}"
                    )
                    for name in VOTES
                }
            self.leaked = words.add(gr.Checkbox(elem_id="leaked"), label="vote.leaked")
        self.reveal = gr.HTML(elem_id="reveal")
        with gr.Row(elem_id="actions"):
            self.retry = words.add(gr.Button(size="sm", elem_id="retry", min_width=120), value="chat.retry")
            self.new = words.add(gr.Button(size="sm", elem_id="new", min_width=120), value="chat.new")

    @property
    def outputs(self) -> list[Any]:
        """What this panel updates."""
        bots = [self.bot, self.left, self.right]
        rest = [self.card, self.pair, self.entry_row, self.entry, self.send, self.stop, self.notice, self.ballot]
        return [*bots, *rest, self.reveal, self.retry, *self.votes.values()]

    def view(self, session: TestSession, guide: GetTestGuideResponse, language: str) -> Updates:
        """The panel as the session is."""
        battle = session.HasField("battle")
        finished = session.state == TestSessionState.TEST_SESSION_STATE_FINISHED
        both = battle and all(any(t.status == "OK" for t in shown.in_force(session, side)) for side in (LEFT, RIGHT))
        updates: Updates = {
            self.card: shown.task_card(guide, find(guide, session.task), session, language, rules=True),
            self.pair: gr.update(visible=battle),
            self.bot: gr.update(visible=not battle),
            self.entry_row: gr.update(visible=not finished),
            self.entry: gr.update(interactive=True),
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.retry: gr.update(visible=not finished, interactive=bool(session.turns)),
            self.ballot: gr.update(visible=battle and not finished),
            self.reveal: shown.vote_result(session, language),
            self.notice: self._notice(session, language) if finished else "",
            **{button: gr.update(interactive=both) for button in self.votes.values()},
        }
        return {**updates, **self._bubbles(session, language)}

    def _notice(self, session: TestSession, language: str) -> str:
        lines = [] if session.HasField("battle") else [text(language, "form.sent", model=shown.name_of(session.model))]
        lines.append(text(language, "chat.finished"))
        return f'<div class="cm-reveal">{"<br>".join(map(shown.plain, lines))}</div>'

    def _bubbles(self, session: TestSession, language: str) -> Updates:
        if session.HasField("battle"):
            return {
                self.left: shown.bubbles(shown.in_force(session, LEFT), language),
                self.right: shown.bubbles(shown.in_force(session, RIGHT), language),
            }
        said = shown.bubbles(shown.in_force(session), language)
        return {self.bot: gr.update(visible=True, value=said, feedback_value=shown.feedback(session))}

    def say(self, words: str, session: TestSession, language: str) -> AsyncGenerator[Updates, None]:
        """Ask, and show the replies as they come; every one is kept, also those that broke off.

        Raises:
            ChatmillError: a reply could not be kept.
        """
        return self._ask(words, session, {}, language)

    async def again(self, session: TestSession, language: str) -> AsyncGenerator[Updates, None]:
        """Ask the last question again; the old reply stays in the record. Raises as `say`."""
        sides = (LEFT, RIGHT) if session.HasField("battle") else (ONE,)
        last: dict[BattleSide.ValueType, TestTurn] = {
            side: turns[-1] for side in sides if (turns := shown.in_force(session, side))
        }
        if not last:
            gr.Info(text(language, "chat.nothing_to_retry"))
            return
        words = next(iter(last.values())).user
        async with aclosing(self._ask(words, session, last, language)) as stream:
            async for updates in stream:
                yield updates

    async def _ask(
        self, words: str, session: TestSession, replaced: Mapping[BattleSide.ValueType, TestTurn], language: str
    ) -> AsyncGenerator[Updates, None]:
        sides = await self._sides(session)
        names = {turn.name for turn in replaced.values()}
        left = [turn for turn in session.turns if turn.name not in names]
        before = TestSession()
        before.CopyFrom(session)
        del before.turns[:]
        before.turns.extend(left)
        question = Message(role=Role.ROLE_USER, content=words)
        replies = {side: Reply() for side in sides}
        work = [
            asyncio.create_task(
                fetch(
                    self._desk.mesh.inference, model, [*history(left, side), question], session.facts,
                    session.name.partition("/")[2], replies[side], self._desk.patience,
                )
            )
            for side, model in sides.items()
        ]  # fmt: skip
        self._asking[session.name] = work
        busy: Updates = {
            self.entry: gr.update(value="", interactive=False),
            self.send: gr.update(visible=False),
            self.stop: gr.update(visible=True),
            self.retry: gr.update(interactive=False),
            **{button: gr.update(interactive=False) for button in self.votes.values()},
        }
        try:
            yield {**busy, **self._coming(before, words, replies, [False] * len(work), language)}
            async with aclosing(ticking(work)) as ticks:
                async for _ in ticks:
                    yield self._coming(before, words, replies, [task.done() for task in work], language)
        finally:
            self._asking.pop(session.name, None)
            for side, reply in replies.items():
                old = replaced[side].name if side in replaced else ""
                await self._desk.record(session.name, reply.turn(words, side, old))
        if not session.model_hidden:  # a service's message may name the model
            for problem in {reply.problem for reply in replies.values() if reply.problem}:
                gr.Warning(shown.plain(text(language, "trouble.call", message=problem)), duration=12)

    def idle(self, words: str) -> Updates:
        """The panel ready for another try, with what could not be sent back in its place."""
        return {
            self.entry: gr.update(value=words, interactive=True),
            self.send: gr.update(visible=True),
            self.stop: gr.update(visible=False),
            self.retry: gr.update(interactive=True),
        }

    async def _sides(self, session: TestSession) -> dict[BattleSide.ValueType, str]:
        if not session.HasField("battle"):
            return {ONE: session.model}
        left, right = await self._desk.sides(session.name)
        return {LEFT: left, RIGHT: right}

    def _coming(
        self,
        before: TestSession,
        words: str,
        replies: Mapping[BattleSide.ValueType, Reply],
        done: list[bool],
        language: str,
    ) -> Updates:
        """The conversation with the replies that still come; side by side none is shown further than the other."""
        texts = paced([reply.text for reply in replies.values()], done)
        bots = {ONE: self.bot, LEFT: self.left, RIGHT: self.right}
        updates: Updates = {}
        for (side, _), text_so_far in zip(replies.items(), texts, strict=True):
            said = shown.bubbles(shown.in_force(before, side), language)
            said += shown.pair(words, text_so_far or "…")
            updates[bots[side]] = said
        return updates

    def cut_off(self, session: str) -> None:
        """End the replies that are coming; they are kept as far as they came."""
        for task in self._asking.get(session, ()):
            task.cancel()
