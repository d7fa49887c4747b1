"""From a conversation to the token ids that a model continues.

Renders the model's own chat template and tokenizes the result so that nothing a customer types is ever read as a
control token: `<|assistant|>` in a message reaches the model as those thirteen characters. Text without such literals
gives exactly the ids of `tokenizer.apply_chat_template`. This module knows no torch, no engine and no registry.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from chatmill.errors import FailedPrecondition, InvalidArgument
from inference_svc.generation import FunctionCall, Message, Overflow, Role, Tool

CONTEXT_OVERFLOW = "CONTEXT_OVERFLOW"
"""Reason of the InvalidArgument for a prompt that is longer than the context."""

_MARKUP = re.compile(r"<[^\s<>]+>|\[[A-Z_/]+\]")
_WORD_EDGE = re.compile(r"(?<=\W)(?=\w)|(?<=\w)(?=\W)")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits.

    Attributes:
        token_ids: what the model continues.
        truncated_messages: how many of the oldest messages were dropped for it.
    """

    token_ids: list[int]
    truncated_messages: int = 0


class ChatPrompts:
    """Renders and tokenizes conversations for one model.

    Args:
        tokenizer: a fast tokenizer of Transformers; its `chat_template` is used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend_tokenizer
        # Some are saved as a training left them, which pads what is tokenized together and cuts what is long.
        self._backend.no_padding()
        self._backend.no_truncation()
        template = tokenizer.chat_template
        self.template: str = template if isinstance(template, str) else ""
        self._writes_tool_calls = "tool_calls" in self.template
        self.control_tokens = tuple(
            sorted(
                {
                    t.content
                    for t in tokenizer.added_tokens_decoder.values()
                    if t.special or _MARKUP.fullmatch(t.content)
                },
                key=len,
                reverse=True,
            )
        )
        self._control = re.compile("|".join(map(re.escape, self.control_tokens))) if self.control_tokens else None

    @property
    def template_digest(self) -> str:
        """sha256 hex of the template text, empty without a template."""
        return hashlib.sha256(self.template.encode()).hexdigest() if self.template else ""

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        """Token ids of the conversation, ready for the assistant to continue.

        Raises:
            FailedPrecondition: the model has no chat template.
            InvalidArgument: on `messages`: the template refuses them, or a text is not valid Unicode.
        """
        return self._tokenize(self.texts(messages, tools))

    def texts(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[str]:
        """What `encode` tokenizes, each text by itself: the rendered conversation, cut where a control token's literal
        is broken up. Raises what `encode` raises."""
        if not self.template:
            raise FailedPrecondition(
                "The model has no chat template. Give a base whose tokenizer_config.json has one, or send plain text.",
                reason="NO_CHAT_TEMPLATE",
            )
        marker = _unused_character(messages, tools)
        return _cut(self._render(messages, tools, marker), marker)

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain text; control tokens in it stay text and nothing is added around it.

        Raises:
            InvalidArgument: on `text`: not valid Unicode.
        """
        check_unicode(text, "text")
        marker = _unused_character([Message(Role.USER, text)], ())
        return self._tokenize(_cut(self._neutral(text, marker), marker))

    def fit(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        limit: int,
        overflow: Overflow = Overflow.REJECT,
    ) -> Prompt:
        """The prompt in at most `limit` tokens.

        With TRUNCATE_OLDEST the fewest oldest messages that are not SYSTEM are dropped, and with them the ASSISTANT and
        TOOL messages that would then stand first without the question they answer; the last message always stays.

        Raises:
            InvalidArgument: on `messages`, reason `CONTEXT_OVERFLOW`: too long, with all or with nothing left to drop.
        """
        return self.fitted(self.encode(messages, tools), messages, tools, limit=limit, overflow=overflow)

    def fitted(
        self,
        ids: list[int],
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        limit: int,
        overflow: Overflow = Overflow.REJECT,
    ) -> Prompt:
        """`fit`, where the token ids of all messages are known."""
        if len(ids) <= limit:
            return Prompt(ids)
        if overflow is Overflow.TRUNCATE_OLDEST:
            shortened = self._truncate(messages, tools, limit)
            if shortened is not None:
                return shortened
        raise InvalidArgument.field(
            "messages",
            f"make a prompt of {len(ids)} tokens, and {limit} are allowed here. Shorten them, or set overflow to "
            "TRUNCATE_OLDEST to drop the oldest."
            if overflow is Overflow.REJECT
            else f"make a prompt of {len(ids)} tokens, and even without the older messages more than the {limit} that "
            "are allowed here. Shorten the system prompt or the last message.",
            reason=CONTEXT_OVERFLOW,
        )

    def _truncate(self, messages: Sequence[Message], tools: Sequence[Tool], limit: int) -> Prompt | None:
        droppable = [i for i, m in enumerate(messages) if m.role is not Role.SYSTEM][:-1]
        starts = [n for n in range(1, len(droppable) + 1) if n == len(droppable) or self._opens(messages, droppable, n)]
        best: Prompt | None = None
        low, high = 0, len(starts) - 1
        while low <= high:
            middle = (low + high) // 2
            dropped = set(droppable[: starts[middle]])
            ids = self.encode([m for i, m in enumerate(messages) if i not in dropped], tools)
            if len(ids) <= limit:
                best, high = Prompt(ids, len(dropped)), middle - 1
            else:
                low = middle + 1
        return best

    @staticmethod
    def _opens(messages: Sequence[Message], droppable: Sequence[int], dropped: int) -> bool:
        return messages[droppable[dropped]].role is Role.USER

    def _render(self, messages: Sequence[Message], tools: Sequence[Tool], marker: str) -> str:
        for index, message in enumerate(messages):
            check_unicode(message.content, f"messages[{index}].content")
        try:
            rendered = self._tokenizer.apply_chat_template(
                [self._as_template_sees(m, marker) for m in messages],
                tools=[self._neutral_tree(_tool(t), marker) for t in tools] or None,
                add_generation_prompt=True,
                tokenize=False,
            )
        except TemplateError as error:
            raise InvalidArgument.field(
                "messages", f"the model's chat template refuses them: {error}. Check the order of the roles."
            ) from error
        return str(rendered)

    def _as_template_sees(self, message: Message, marker: str) -> dict[str, Any]:
        content = self._neutral(message.content, marker)
        seen: dict[str, Any] = {"role": message.role.value, "content": content}
        if message.tool_calls and self._writes_tool_calls:
            seen["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {
                        "name": self._neutral(call.name, marker),
                        "arguments": self._neutral_tree(_arguments(call), marker),
                    },
                }
                for call in message.tool_calls
            ]
        elif message.tool_calls:
            calls = "\n".join(
                f"<tool_call>{self._neutral(_written(c), marker)}</tool_call>" for c in message.tool_calls
            )
            seen["content"] = f"{content}\n{calls}" if content else calls
        if message.tool_call_id:
            seen["tool_call_id"] = message.tool_call_id
        return seen

    def _neutral(self, text: str, marker: str) -> str:
        """`text` with the marker inside every control token that it spells."""
        if self._control is None:
            return text
        # Breaking one literal can leave another that overlapped it, hence until none is left.
        while self._control.search(text):
            text = self._control.sub(lambda match: _broken(match.group(), marker), text)
        return text

    def _neutral_tree(self, value: Any, marker: str) -> Any:
        if isinstance(value, str):
            return self._neutral(value, marker)
        if isinstance(value, list):
            return [self._neutral_tree(v, marker) for v in value]
        if isinstance(value, dict):
            return {self._neutral(str(k), marker): self._neutral_tree(v, marker) for k, v in value.items()}
        return value

    def _tokenize(self, texts: Sequence[str]) -> list[int]:
        # Unlike `encode` this leaves the interpreter to other threads meanwhile, and notes no places of tokens.
        encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [token for encoding in encodings for token in encoding.ids]


def _cut(text: str, marker: str) -> list[str]:
    return [part for part in text.split(marker) if part]


def _broken(literal: str, marker: str) -> str:
    # Where punctuation meets letters is where tokenizers split anyway, so the ids are mostly the usual ones.
    edge = _WORD_EDGE.search(literal)
    cut = edge.start() if edge and edge.start() else max(1, len(literal) // 2)
    return literal[:cut] + marker + literal[cut:]


def check_unicode(text: str, field: str) -> None:
    """Raise InvalidArgument on `field` for text that no encoding can carry (lone surrogates)."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument.field(
            field,
            f"is not valid Unicode: {error.reason} at character {error.start}. Send whole characters, "
            "not halves of a surrogate pair.",
        ) from None


def _unused_character(messages: Sequence[Message], tools: Sequence[Tool]) -> str:
    """A private-use character that occurs nowhere in the prompt, to mark where control tokens are broken up."""
    used = "".join(m.content + "".join(c.name + c.arguments for c in m.tool_calls) for m in messages)
    used += "".join(t.name + t.description + json.dumps(t.json_schema) for t in tools) if tools else ""
    return next(c for c in map(chr, range(0xF0000, 0xFFFFE)) if c not in used)


def _tool(tool: Tool) -> dict[str, Any]:
    parameters: Mapping[str, object] = tool.json_schema or {"type": "object", "properties": {}}
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(parameters)},
    }


def _arguments(call: FunctionCall) -> Any:
    try:
        return json.loads(call.arguments or "{}")
    except json.JSONDecodeError:
        return call.arguments


def _written(call: FunctionCall) -> str:
    """A call as Hermes-style models write it."""
    return json.dumps({"name": call.name, "arguments": _arguments(call)}, ensure_ascii=False)
