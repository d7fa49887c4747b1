"""Detectors of replies that are broken as text: loops, template debris, the customer's part, the wrong language."""

from __future__ import annotations

import regex

from eval_svc.glitches.base import Hit, Scene, detects
from eval_svc.scorers.base import View
from eval_svc.scorers.shape import NoRepeat
from eval_svc.text import letters, script_share

_TAGS = regex.compile(
    r"<\|[^|>\n]{1,40}\|>"  # <|user|>, <|im_start|>, <|eot_id|>
    r"|</?(?:s|unk|pad|bos|eos|think|tool_call|tool_response|function_call|start_of_turn|end_of_turn)>"
    r"|\[/?(?:INST|SYS|AVAILABLE_TOOLS|TOOL_CALLS)\]|<</?SYS>>"
    r"|^[ \t]*#{2,}\s*(?:assistant|system|instruction|response)\b"
    r"|\{\{\s*[\w.]+\s*\}\}|\{%.{0,80}?%\}",  # a template that was not filled in
    regex.IGNORECASE | regex.MULTILINE,
)
_CODEPOINTS = regex.compile(r"[\uFFFD\x00-\x08\x0B\x0C\x0E-\x1F\x7F\p{Cs}\p{Co}]")
_MOJIBAKE = regex.compile(r"(?:Ã[\x80-\xbf©¨¤¶¼ ]|â€[™œ\x9d“”˜]|[åäæç][\x80-\xbf¤½¥]{1,2}){2,}|â€™|â€œ")
_JSON = regex.compile(r"\{\s*\"[\w-]+\"\s*:\s*(?:\"|\{|\[|\d|true|false|null)", regex.IGNORECASE)

_CUSTOMER = regex.compile(
    r"^[ \t]*\**(?:user|customer|human|client|顾客|客户|用户|买家)\**\s*[:：]", regex.IGNORECASE | regex.MULTILINE
)


@detects("repeat_loop")
def repeat_loop(scene: Scene) -> Hit | None:
    """The reply loops, or says an earlier reply again to a customer who said something else."""
    found = NoRepeat().score(View(scene.reply.text, scene.reply, earlier=scene.earlier))
    return Hit(found.evidence, found.note) if found.verdict == "fail" else None


@detects("garbage")
def garbage(scene: Scene) -> Hit | None:
    """Marks of the chat template, broken characters, or raw data where prose belongs."""
    text = scene.reply.text
    for pattern, note in (
        (_TAGS, "template tag"),
        (_CODEPOINTS, "broken character"),
        (_MOJIBAKE, "wrongly decoded text"),
        (_JSON, "raw data"),
    ):
        match = pattern.search(text, timeout=1)
        # a reply that is a JSON document as a whole was asked for as such; the json_schema check judges it
        if match and not (pattern is _JSON and text.strip()[:1] in ("{", "[", "`")):
            return Hit(match.group(), note)
    return None


@detects("speaks_as_customer")
def speaks_as_customer(scene: Scene) -> Hit | None:
    """A line of the reply is the customer's."""
    match = _CUSTOMER.search(scene.reply.text, timeout=1)
    return Hit(match.group().strip(), "a line in the customer's name") if match else None


def expected_language(language: str, user: str) -> str:
    """The language to answer in: as stated, else by the script of the customer's words, else unknown (empty)."""
    if language:
        return language
    if letters(user) < 4:
        return ""
    for code in ("zh", "ja", "ko", "ru", "ar", "el", "he", "th", "hi", "en"):
        if script_share(user, code) >= 0.7:
            return code
    return ""


@detects("wrong_language")
def wrong_language(scene: Scene) -> Hit | None:
    """Enough letters to tell, and most are of another script than the customer's language is written in."""
    wanted = expected_language(scene.language, scene.user)
    text = scene.reply.text
    # eight Chinese characters say as much as two dozen Latin letters
    enough = letters(text) >= 24 or (wanted != "zh" and script_share(text, "zh") > 0.5 and letters(text) >= 8)
    if not wanted or not enough:
        return None
    share = script_share(text, wanted)
    return Hit(text[:80], f"{share:.0%} of the letters are {wanted}") if share < 0.5 else None
