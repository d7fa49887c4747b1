"""Talk to a model in the terminal, its reply streaming in. `/new` begins a new conversation, `/quit` or Ctrl-D ends.

Ctrl-C while it speaks cuts the reply off. With -m it answers one message and ends. Without a mesh that runs, inference
and factory are started for this command alone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from chatmill.cli import settings
from chatmill.cli.terminal import ask, restored

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from chatmill.recipe.mesh import Mesh

HELP = "/new a new conversation, /quit the end; Ctrl-C cuts a reply off, or ends at the prompt"


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", metavar="MODEL", help="for example shop, shop/versions/2 or shop/aliases/live")
    parser.add_argument("-m", "--message", metavar="TEXT", help="answer this one message and end")
    parser.add_argument("--system", metavar="TEXT", help="system prompt instead of the model's own")
    parser.add_argument(
        "--fact",
        action="append",
        default=[],
        metavar="TEXT",
        help="something known about the customer; may be repeated",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest reply")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy")
    parser.add_argument("--seed", type=int, metavar="N", help="same seed, same words")


def run(arguments: argparse.Namespace) -> int:
    """Do it; returns the exit code."""
    return settings.run_async(_run(arguments))


async def _run(arguments: argparse.Namespace) -> int:
    from chatmill.cli import console as consoles
    from chatmill.cli.meshes import found_or_started
    from chatmill.recipe.mesh import connected

    config, console = settings.load(arguments), consoles.stderr()
    services = ("inference", "factory")
    async with (
        found_or_started(arguments, config, console, services=services) as found,
        connected(found.config, services=services) as mesh,
    ):
        conversation = Conversation(arguments, mesh, console)
        if arguments.message is not None:
            await conversation.say(arguments.message)
            return 0
        return await _talk(conversation, console)


async def _talk(conversation: Conversation, console: Console) -> int:
    from chatmill.errors import ChatmillError

    interactive = sys.stdin.isatty()
    if interactive:
        console.print(f"{conversation.model}: {HELP}", style="dim")
    with _interrupts(conversation), restored(interactive):
        while True:
            try:
                said = await ask("you> " if interactive else "")
            except (EOFError, asyncio.CancelledError):
                return 0
            if said.strip() in ("/quit", "/exit"):
                return 0
            if said.strip() == "/new":
                conversation.begin()
                console.print("a new conversation", style="dim")
            elif said.startswith("/"):
                console.print(HELP, style="dim")
            elif said.strip():
                try:
                    await conversation.say(said)
                except ChatmillError as error:
                    if not interactive:
                        raise
                    console.print(f"error: {error.message}", style="red")


@contextlib.contextmanager
def _interrupts(conversation: Conversation) -> Iterator[None]:
    """Ctrl-C ends the reply that is coming, or the chat when there is none."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    loop.add_signal_handler(signal.SIGINT, lambda: conversation.cut_off() or task.cancel())
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


class Conversation:
    """The messages so far, and how the next reply is asked for and shown."""

    def __init__(self, arguments: argparse.Namespace, mesh: Mesh, console: Console) -> None:
        from chatmill.recipe.reading import model_name

        self.model = model_name(arguments.model)
        self._arguments = arguments
        self._mesh = mesh
        self._console = console
        self._messages: list[Any] = []
        self._answering: asyncio.Task[None] | None = None
        self.begin()

    def begin(self) -> None:
        """Forget what was said."""
        from chatmill.common.v1 import Message, Role

        self._messages = []
        if self._arguments.system:
            self._messages.append(Message(role=Role.ROLE_SYSTEM, content=self._arguments.system))

    def cut_off(self) -> bool:
        """End the reply that is coming; False if there is none."""
        return self._answering is not None and self._answering.cancel()

    async def say(self, text: str) -> None:
        """Send a message and show the reply as it comes; a reply that is cut off stays in the conversation.

        Raises:
            ChatmillError: as `Generate` documents; the message is taken back then.
        """
        from chatmill.common.v1 import Message, Role

        self._messages.append(Message(role=Role.ROLE_USER, content=text))
        reply = Reply(self._console)
        self._answering = asyncio.create_task(self._answer(reply))
        try:
            await self._answering
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # not the reply but the chat was cancelled
            self._console.print(" [cut off]", style="dim")
        except BaseException:
            self._messages.pop()
            raise
        finally:
            self._answering = None
        self._messages.append(Message(role=Role.ROLE_ASSISTANT, content=reply.text, tool_calls=reply.tool_calls))

    async def _answer(self, reply: Reply) -> None:
        from chatmill.inference.v1 import DeltaMode, GenerateRequest, GenerationSpec, Sampling, Streaming

        given = self._arguments
        spec = GenerationSpec(
            model=self.model,
            messages=self._messages,
            facts=given.fact,
            sampling=Sampling(max_output_tokens=given.max_tokens, temperature=given.temperature, seed=given.seed),
            streaming=Streaming(delta_mode=DeltaMode.DELTA_MODE_INCREMENT),
        )
        with reply.awaited(self.model):
            async for response in self._mesh.inference.Generate(GenerateRequest(spec=spec)):
                reply.take(response.event)


class Reply:
    """A reply as it comes: text to stdout, everything else about it to stderr.

    Args:
        console: for what is not the reply's text.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._waiting: Status | None = None
        self.text = ""
        self.tool_calls: list[Any] = []

    @contextlib.contextmanager
    def awaited(self, model: str) -> Iterator[None]:
        """Until something of it comes, a terminal shows that it is awaited; a model may have to be loaded first."""
        if self._console.is_terminal:
            self._waiting = self._console.status(f"waiting for {model}")
            self._waiting.start()
        try:
            yield
        finally:
            self._came()

    def _came(self) -> None:
        if self._waiting is not None:
            self._waiting.stop()
            self._waiting = None

    def take(self, event: Any) -> None:
        """Show one event."""
        kind = event.WhichOneof("event")
        if kind == "progress" and event.progress.queue_position and self._waiting is not None:
            self._waiting.update(f"waiting, number {event.progress.queue_position} in the line")
        if kind in ("started", "progress"):
            return
        self._came()
        if kind == "delta":
            self._write(event.delta.text)
        elif kind == "tool_call":
            self._call(event.tool_call.tool_call)
        elif kind == "handoff":
            self._call(event.handoff.tool_call, shown=False)
            self._note(f"[handed over to a person: {event.handoff.reason or 'no reason given'}]", "yellow")
        elif kind == "moderation":
            found = ", ".join(category.category for category in event.moderation.categories)
            self._note(f"[moderation: {found}]", "yellow")
        elif kind == "retracted":
            self.text = self.text[: event.retracted.from_character_offset]
            self._note(f"[withdrawn: {event.retracted.reason}]", "yellow")
            sys.stdout.write(self.text)
            sys.stdout.flush()
        elif kind == "finished":
            self._finish(event.finished)

    def _write(self, text: str) -> None:
        self.text += text
        sys.stdout.write(text)
        sys.stdout.flush()

    def _call(self, call: Any, *, shown: bool = True) -> None:
        # a handover comes as a tool call, too, on some servers; the conversation needs it once
        if call.name and all(known.id != call.id for known in self.tool_calls):
            self.tool_calls.append(call)
            if shown and call.name != "transfer_to_human":
                self._note(f"[calls {call.name} {call.arguments_json}]", "cyan")

    def _note(self, text: str, style: str) -> None:
        sys.stdout.flush()
        self._console.print(("\n" if self.text else "") + text, style=style)

    def _finish(self, finished: Any) -> None:
        sys.stdout.write("\n")
        sys.stdout.flush()
        timing, usage = finished.timing, finished.usage
        pace = usage.output_tokens / (timing.decode_us / 1e6) if timing.decode_us else 0.0
        served = finished.served_by
        weights = "" if served.device == "remote" else served.quantization
        quantized = {"": "", "none": ", not quantized"}.get(weights, f", {weights}")
        engine = f" ({served.engine} engine{quantized})" if served.engine else ""
        self._console.print(
            f"  {usage.output_tokens} tokens, first after {timing.first_token_us / 1000:.0f} ms, {pace:,.0f} tokens/s, "
            f"{served.model}{engine}",
            style="dim",
        )
