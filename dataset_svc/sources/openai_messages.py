"""OpenAI's chat format: `messages` with roles system, user, assistant and tool, and `tool_calls` of the assistant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dataset_svc import strict_json
from dataset_svc.conversation import Conversation, ToolCall, role_of
from dataset_svc.sources import shape
from dataset_svc.sources.record import Record


class OpenAIMessages:
    """One conversation: messages[{role, content, tool_calls?, tool_call_id?}], context?, annotations?, label?."""

    name = "openai"

    def matches(self, data: Any) -> bool:
        """True if `messages` is a list of objects with a role; the neutral shape is asked first."""
        return isinstance(data, dict) and _is_message_list(data.get("messages"))

    def parse(self, record: Record) -> Conversation:
        """See `Shape.parse`."""
        messages, dropped = [], 0
        names: dict[str, str] = {}
        for number, message in enumerate(shape.message_list(record, "messages")):
            content, other = shape.text_of(record, number, message.get("content"))
            dropped += other
            calls = [_call(record, number, call, names) for call in _calls(record, number, message)]
            messages.append(
                shape.build_message(
                    record,
                    number,
                    spelling=message.get("role"),
                    content=content,
                    name=message.get("name") or names.get(str(message.get("tool_call_id"))),
                    kind="result",
                    calls=calls,
                    call_id=str(message.get("tool_call_id") or ""),
                    by_person=message.get("by_person") is True,
                )
            )
        return shape.conversation(
            record,
            messages,
            context=shape.mapping(record, "context"),
            annotations=shape.noted(record),
            dropped_parts=dropped,
        )


def _is_message_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in value)
        and any(role_of(m["role"]) for m in value)
    )


def _calls(record: Record, number: int, message: Mapping[str, Any]) -> list[Any]:
    calls = message.get("tool_calls") or []
    legacy = message.get("function_call")
    if not isinstance(calls, list):
        raise shape.bad_message(record, number, "has tool_calls that are not a list")
    return [*calls, {"function": legacy}] if legacy else calls


def _call(record: Record, number: int, call: Any, names: dict[str, str]) -> ToolCall:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise shape.bad_message(record, number, "has a tool call without function.name")
    call_id = str(call.get("id") or "")
    if call_id:
        names[call_id] = function["name"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = strict_json.loads(arguments or "{}")
        except ValueError:
            arguments = None
    if not isinstance(arguments, dict):
        raise shape.bad_message(
            record, number, f"calls {function['name']} with arguments that are not a JSON object", "Mend this message"
        )
    return ToolCall(function["name"], arguments, call_id)
