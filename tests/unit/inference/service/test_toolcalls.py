"""Tool calls in streamed text: the same whatever the chunks."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from inference_svc.toolcalls import CLOSE, OPEN, ParsedCall, ToolCallParser

CALL = '<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "complaint"}}</tool_call>'


def parse(chunks):
    parser = ToolCallParser()
    out = []
    for part in [*(parser.feed(c) for c in chunks), parser.finish()]:
        for item in part:
            if isinstance(item, str) and out and isinstance(out[-1], str):
                out[-1] += item
            else:
                out.append(item)
    return out, parser.malformed


def cut(text, points):
    points = sorted({min(p, len(text)) for p in points})
    return [text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)]


def test_text_before_a_call_streams_at_once():
    parser = ToolCallParser()
    assert parser.feed("I am sorry.") == ["I am sorry."]
    assert parser.feed(" <tool") == []
    assert parser.feed('_call>{"name": "transfer_to_human", "arguments": {"reason": "angry"}}') == []
    [call] = parser.feed("</tool_call>")
    assert call.is_handoff
    assert call.reason == "angry"


def test_less_than_in_text_is_not_kept():
    parser = ToolCallParser()
    assert parser.feed("3 < 4 and") == ["3 < 4 and"]
    assert parser.feed(" a <tool") == [" a"]
    assert parser.feed("box>") == [" <toolbox>"]


def test_two_calls_and_text_after():
    other = '<tool_call>\n{"name": "find_order", "arguments": {"id": 7}}\n</tool_call>'
    items, malformed = parse([f"Moment.\n{other}\n{CALL}Bye"])
    assert items == [
        "Moment.",
        ParsedCall("find_order", '{"id": 7}'),
        ParsedCall("transfer_to_human", '{"reason": "complaint"}', "complaint"),
        "Bye",
    ]
    assert malformed == 0


def test_malformed_call_stays_text_and_is_counted():
    for bad in ("not json", "[1]", '{"arguments": {}}', '{"name": "x", "arguments": 3}', "[" * 5000):
        text = f"a{OPEN}{bad}{CLOSE}b"
        assert parse([text]) == ([text], 1)


def test_a_complete_call_without_closing_tag_counts_at_the_end():
    items, malformed = parse([CALL[: -len(CLOSE)]])
    assert [i.name for i in items] == ["transfer_to_human"]
    assert malformed == 0
    half = CALL[:40]
    assert parse([half]) == ([half], 1)


def test_a_call_that_never_ends_is_let_go():
    parser = ToolCallParser()
    parser.feed(OPEN)
    let_go = [item for _ in range(20) for item in parser.feed("x" * 10_000)]
    assert sum(map(len, let_go)) + len(parser._held) == len(OPEN) + 200_000
    assert parser.malformed == 1
    assert len(parser._held) <= 1


pieces = st.lists(
    st.one_of(
        st.sampled_from([OPEN, CLOSE, CALL, "<", "tool_call>", "<tool_", "\n", " ", "你好", "}", '{"name": "a"}']),
        st.text(max_size=8),
        st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2).map(
            lambda d: OPEN + json.dumps({"name": "t", "arguments": d}) + CLOSE
        ),
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(pieces, st.lists(st.integers(0, 200), max_size=12))
def test_chunks_do_not_matter(text, points):
    assert parse(cut(text, points)) == parse([text])


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.characters(blacklist_characters="<"), max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_text_without_calls_is_unchanged(text, points):
    items, malformed = parse(cut(text, points))
    assert "".join(items) == text
    assert malformed == 0
