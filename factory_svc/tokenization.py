"""Turns conversations into token ids and labels, so that the loss sees exactly what the assistant must produce.

The assistant's tokens come from the chat template's `{% generation %}` markers. A template without them is replaced,
for training only, by TRL's patched version where TRL knows the family; otherwise the mask is found by rendering the
conversation turn by turn. A template for which neither works is refused: training on everything, silently, is how a
model learns to speak for the customer.

This module knows tokenizers only through `apply_chat_template`; it loads no model.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chatmill.errors import FailedPrecondition, InvalidArgument
from factory_svc.task import DataCounters, Messages

IGNORED = -100
"""Label of a token that the loss does not see (PyTorch's cross-entropy default)."""

OverLength = Literal["truncate", "drop", "refuse"]
Row = tuple[list[int], list[int]]
"""Token ids, and a mask of 0 and 1 of the same length, 1 where the assistant speaks."""
Encode = Callable[[Sequence[Messages]], list[Row]]
"""Conversations to their rows; several at once, since a tokenizer's call costs more than its work."""
_BATCH = 128
_WORTH_PROCESSES = 50_000
"""Conversations from which on more processes than this one are asked to encode."""

_PROBE: Messages = [
    {"role": "user", "content": "alpha"},
    {"role": "assistant", "content": "bravo"},
    {"role": "user", "content": "charlie"},
    {"role": "assistant", "content": "delta"},
]


@dataclass(slots=True)
class Tokenized:
    """Training rows and what became of the rest.

    Attributes:
        input_ids: one list of token ids per row.
        labels: same shape; `IGNORED` where the loss must not look.
        counters: what was trained on, cut, dropped.
        mask_source: how the assistant's tokens were found: `template`, `trl` or `turns`; empty for loss on all.
    """

    input_ids: list[list[int]] = field(default_factory=list)
    labels: list[list[int]] = field(default_factory=list)
    counters: DataCounters = field(default_factory=DataCounters)
    mask_source: str = ""


def tokenize(
    tokenizer: Any,
    conversations: Sequence[Messages],
    *,
    max_length: int,
    over_length: OverLength,
    loss_on: Literal["assistant", "all"],
) -> Tokenized:
    """Rows for the trainer.

    Args:
        tokenizer: a `transformers` tokenizer with a chat template.
        conversations: what to learn from; each renders to one row.
        max_length: most tokens per row.
        over_length: cut the row, drop it, or refuse the whole task.
        loss_on: `assistant` masks everything that the assistant does not say.

    Raises:
        FailedPrecondition: the tokenizer has no chat template, or no way is found to tell the assistant's tokens.
        InvalidArgument: nothing is left to learn from, or a row is too long under `refuse`; the message counts.
    """
    encode, source = mask_encoder(tokenizer) if loss_on == "assistant" else (_encode_all(tokenizer), "")
    result = Tokenized(mask_source=source)
    count = dict.fromkeys(
        ("truncated", "dropped_over_length", "dropped_no_target", "tokens_cut", "tool_messages_skipped"), 0
    )
    tools = takes_tool_messages(tokenizer)
    taken = conversations if tools else [[m for m in given if m["role"] != "tool"] for given in conversations]
    count["tool_messages_skipped"] = sum(map(len, conversations)) - sum(map(len, taken))
    for index, (ids, mask) in enumerate(_rows(encode, taken)):
        if len(ids) > max_length:
            if over_length == "refuse":
                raise InvalidArgument(
                    f"Conversation {index} has {len(ids)} tokens, more than max_length = {max_length}. "
                    "Raise max_length, or set over_length to truncate or drop.",
                    reason="OVER_LENGTH",
                )
            if over_length == "drop":
                count["dropped_over_length"] += 1
                continue
            count["truncated"] += 1
            count["tokens_cut"] += len(ids) - max_length
            ids, mask = ids[:max_length], mask[:max_length]
        # The first token is never predicted, so a row whose only target is its first token teaches nothing.
        if not any(mask[1:]):
            count["dropped_no_target"] += 1
            continue
        result.input_ids.append(ids)
        result.labels.append([t if m else IGNORED for t, m in zip(ids, mask, strict=True)])
    result.counters = _counters(result, len(conversations), count)
    if not result.input_ids:
        raise InvalidArgument(_nothing_left(result.counters, max_length), reason="NOTHING_TO_TRAIN")
    return result


def _counters(result: Tokenized, read: int, count: dict[str, int]) -> DataCounters:
    tokens = sum(map(len, result.input_ids))
    targets = sum(len(row) - row.count(IGNORED) for row in result.labels)
    return DataCounters(
        examples_read=read,
        examples_trained=len(result.input_ids),
        tokens=tokens,
        target_tokens=targets,
        masked_tokens=tokens - targets,
        **count,
    )


def _nothing_left(counters: DataCounters, max_length: int) -> str:
    return (
        f"Nothing is left to train on: of {counters.examples_read} conversations "
        f"{counters.dropped_over_length} were longer than max_length = {max_length} and "
        f"{counters.dropped_no_target} held no assistant token within it. Raise max_length or check the roles."
    )


def _rows(encode: Encode, conversations: Sequence[Messages]) -> Iterator[Row]:
    """The row of every conversation, in their order; of many, made by all processors."""
    starts = range(0, len(conversations), _BATCH)
    if len(conversations) < _WORTH_PROCESSES:
        for first in starts:
            yield from _encode_batch(encode, conversations[first : first + _BATCH], first)
        return
    global _work
    # Forked processes find the work here: a tokenizer with its template is nothing that can be sent to them. They must
    # not collect what other libraries of the parent left, since that may need threads that a fork does not have.
    _work = (encode, conversations)
    try:
        with multiprocessing.get_context("fork").Pool(initializer=gc.freeze) as pool:
            for rows in pool.imap(_forked, starts, chunksize=4):
                yield from rows
    finally:
        _work = None


_work: tuple[Encode, Sequence[Messages]] | None = None


def _forked(first: int) -> list[Row]:
    assert _work is not None, "set before the process was forked"
    encode, conversations = _work
    return _encode_batch(encode, conversations[first : first + _BATCH], first)


def _encode_batch(encode: Encode, conversations: Sequence[Messages], first: int) -> list[Row]:
    """Rows of conversations of which the first has the number `first`."""
    import jinja2

    try:
        return encode(conversations)
    except jinja2.TemplateError:
        return [_encode_one(encode, messages, first + at) for at, messages in enumerate(conversations)]


def _encode_one(encode: Encode, messages: Messages, index: int) -> Row:
    import jinja2

    try:
        return encode([messages])[0]
    except jinja2.TemplateError as error:
        roles = ", ".join(m["role"] for m in messages[:8])
        raise InvalidArgument(
            f"The base model's chat template refuses conversation {index} (roles: {roles}): {error}. "
            "Merge turns of the same role, or choose a base whose template takes them.",
            reason="TEMPLATE_REFUSED",
        ) from None


def mask_encoder(tokenizer: Any) -> tuple[Encode, str]:
    """The best way to tell the assistant's tokens under this tokenizer's template, and its name.

    Raises:
        FailedPrecondition: there is no chat template, or no way works for it.
    """
    import jinja2
    from trl.chat_template_utils import get_training_chat_template, has_generation_markers

    if not tokenizer.chat_template:
        raise FailedPrecondition(
            "The base model's tokenizer has no chat template, so it is not known how it marks turns. "
            "Choose an instruct or chat variant of the model.",
            reason="NO_CHAT_TEMPLATE",
        )
    candidates: list[tuple[Encode, str]] = []
    if has_generation_markers(tokenizer.chat_template):
        candidates.append((_encode_markers(tokenizer, None), "template"))
    else:
        # Where TRL does not know the family, the turns still tell.
        with contextlib.suppress(ValueError, jinja2.TemplateError):
            candidates.append((_encode_markers(tokenizer, get_training_chat_template(tokenizer)), "trl"))
    candidates.append((_encode_turns(tokenizer), "turns"))
    for encode, source in candidates:
        if _separates(tokenizer, encode):
            return encode, source
    raise FailedPrecondition(
        "The base model's chat template has no {% generation %} markers, TRL knows no training version of it, and its "
        "turns can't be told apart by rendering, so the loss can't be limited to the assistant. Add the markers to the "
        "template in tokenizer_config.json, or set loss_on to all.",
        reason="NO_ASSISTANT_MASK",
    )


def takes_tool_messages(tokenizer: Any) -> bool:
    """Whether the chat template shows the model what a tool gave back."""
    import jinja2

    said = [_PROBE[0], {"role": "assistant", "content": "bravo"}, {"role": "tool", "content": "golf"}, _PROBE[3]]
    try:
        return "golf" in str(tokenizer.apply_chat_template(said, tokenize=False))
    except (jinja2.TemplateError, ValueError, TypeError):
        return False


def _separates(tokenizer: Any, encode: Encode) -> bool:
    """Whether, on a probe, the mask covers what the assistant says and nothing that the customer says."""
    import jinja2

    try:
        ids, mask = encode([_PROBE])[0]
    except (ValueError, TypeError, jinja2.TemplateError):
        return False
    spoken = tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if m])
    rest = tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if not m])
    return all(word in spoken for word in ("bravo", "delta")) and not any(
        word in spoken or word not in rest for word in ("alpha", "charlie")
    )


def _encode_markers(tokenizer: Any, template: str | None) -> Encode:
    def encode(conversations: Sequence[Messages]) -> list[Row]:
        rendered = tokenizer.apply_chat_template(
            list(conversations),
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            chat_template=template,
        )
        return list(zip(rendered["input_ids"], rendered["assistant_masks"], strict=True))

    return encode


def _encode_turns(tokenizer: Any) -> Encode:
    """An assistant turn is what its rendering adds to the prompt that would have asked for it."""

    def ids_of(messages: Iterable[dict[str, str]], *, ask: bool) -> list[int]:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=ask)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    def encode_one(messages: Messages) -> Row:
        whole = ids_of(messages, ask=False)
        mask = [0] * len(whole)
        for position, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = ids_of(messages[:position], ask=True)
            until = ids_of(messages[: position + 1], ask=False)
            if whole[: len(before)] != before or whole[: len(until)] != until:
                raise ValueError("the template renders a turn differently once others follow")
            mask[len(before) : len(until)] = [1] * (len(until) - len(before))
        return whole, mask

    return lambda conversations: list(map(encode_one, conversations))


def _encode_all(tokenizer: Any) -> Encode:
    def encode(conversations: Sequence[Messages]) -> list[Row]:
        rendered = tokenizer.apply_chat_template(list(conversations), tokenize=True, return_dict=True)
        return [(ids, [1] * len(ids)) for ids in rendered["input_ids"]]

    return encode
