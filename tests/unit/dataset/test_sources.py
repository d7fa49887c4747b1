"""Reading files: every container and shape, every way in which a file can be bad."""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatmill.errors import ChatmillError, InvalidArgument
from dataset_svc.conversation import Conversation
from dataset_svc.sources import files, read_conversations, record

NEUTRAL: dict[str, Any] = {
    "id": "n-1",
    "messages": [
        {"role": "customer", "content": "Hi, where is my parcel?"},
        {"role": "action", "content": "call find {}", "name": "find", "kind": "call", "data": {"id": 7}},
        {"role": "agent", "content": "On its way."},
    ],
}
OPENAI = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {}}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "function": {"name": "find", "arguments": '{"id": 7}'}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "found"},
        {"role": "assistant", "content": "There it is."},
    ]
}
SHAREGPT = {
    "system": "Be kind.",
    "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
}
MULTIWOZ = {
    "goal": {"taxi": {"info": {}}, "hotel": {}},
    "log": [{"text": "A taxi .", "metadata": {}}, {"text": "Sure ."}],
}


def read(path: Path) -> list[Conversation]:
    return [conversation for conversation, _ in read_conversations(path, path.name)]


def said(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


def put(folder: Path, content: str | bytes, name: str = "log") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def test_neutral(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, jsonl(NEUTRAL)))
    assert said(found) == [("user", "Hi, where is my parcel?"), ("tool", "call find {}"), ("assistant", "On its way.")]
    assert found.messages[1].name == "find"
    assert found.messages[1].data == {"id": 7}
    assert (found.id, found.place, found.source_length) == ("n-1", "log:1", 3)


def test_openai(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, jsonl(OPENAI)))
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[1].content == "Hi"
    assert found.annotations["dropped_parts"] == 1
    call = found.messages[2].tool_calls[0]
    assert (call.name, call.arguments, call.id) == ("find", {"id": 7}, "c1")
    assert (found.messages[3].name, found.messages[3].call_id) == ("find", "c1")


def test_sharegpt(tmp_path: Path) -> None:
    (found,) = read(put(tmp_path, jsonl(SHAREGPT)))
    assert said(found) == [("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello")]


def test_multiwoz_is_told_by_its_turns_and_named_by_its_key(tmp_path: Path) -> None:
    found = read(put(tmp_path, json.dumps({"MUL1.json": MULTIWOZ, "PMUL2": MULTIWOZ}, indent=1)))
    assert [said(c) for c in found] == [[("user", "A taxi ."), ("assistant", "Sure .")]] * 2
    assert [(c.id, c.source_id, c.place) for c in found] == [
        ("mul1-json", "MUL1.json", "log:2"),
        ("pmul2", "PMUL2", "log:19"),
    ]
    assert found[0].annotations["domains"] == ["taxi"]


def test_tool_calls_in_text_are_taken_out_of_it(tmp_path: Path) -> None:
    text = 'One moment.\n<tool_call>{"name": "transfer_to_human", "arguments": {"reason": "legal"}}</tool_call>'
    row = {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": text}]}
    (found,) = read(put(tmp_path, jsonl(row)))
    assert found.messages[0].content == text
    assert found.messages[0].tool_calls == ()
    assert found.messages[1].content == "One moment."
    assert found.messages[1].handover is not None
    assert found.messages[1].handover.arguments == {"reason": "legal"}


@pytest.mark.parametrize(
    "broken", ["<tool_call>{no}</tool_call>", '<tool_call>{"name": 1}</tool_call>', "<tool_call>{"]
)
def test_text_that_only_looks_like_a_call_stays(tmp_path: Path, broken: str) -> None:
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": broken}]}
    (found,) = read(put(tmp_path, jsonl(row)))
    assert found.messages[1].content == broken
    assert found.messages[1].tool_calls == ()


CONTAINERS: dict[str, Callable[[list[Any]], str]] = {
    "lines": lambda rows: jsonl(*rows),
    "lines without the last break": lambda rows: jsonl(*rows).rstrip("\n"),
    "blank lines": lambda rows: "\n\n" + jsonl(*rows).replace("\n", "\n \n"),
    "windows breaks and byte order mark": lambda rows: "\ufeff" + jsonl(*rows).replace("\n", "\r\n"),
    "list": lambda rows: json.dumps(rows),
    "indented list": lambda rows: json.dumps(rows, indent=2),
    "object by key": lambda rows: json.dumps({f"k{i}": row for i, row in enumerate(rows)}, ensure_ascii=False),
    "indented object": lambda rows: json.dumps({f"k{i}": row for i, row in enumerate(rows)}, indent=2),
    "wrapped": lambda rows: json.dumps(
        {"version": 12345, "at": 1.5e300, "ok": True, "tags": ["a"], "none": [], "data": rows, "n": [-2.25, 1e-7]},
        indent=1,
    ),
}
TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
ROWS = st.lists(
    st.builds(
        lambda a, b: {"messages": [{"role": "customer", "content": a}, {"role": "agent", "content": b}]}, TEXT, TEXT
    ),
    min_size=1,
    max_size=5,
)
QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


@QUICK
@given(rows=ROWS, container=st.sampled_from(sorted(CONTAINERS)), packed=st.booleans(), block=st.integers(1, 64))
def test_every_container_gives_the_same_conversations(
    rows: list[Any], container: str, packed: bool, block: int
) -> None:
    content = CONTAINERS[container](rows).encode()
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_BLOCK", block)  # so that values fall across blocks
        found = read(put(Path(folder), gzip.compress(content) if packed else content))
    assert [said(c) for c in found] == [
        [("user", r["messages"][0]["content"]), ("assistant", r["messages"][1]["content"])] for r in rows
    ]


def any_outcome(content: bytes) -> list[Conversation] | ChatmillError:
    with tempfile.TemporaryDirectory() as folder:
        try:
            return read(put(Path(folder), content))
        except ChatmillError as error:
            return error


@QUICK
@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_never_give_anything_but_a_clear_error(content: bytes) -> None:
    outcome = any_outcome(content)
    assert isinstance(outcome, ChatmillError)
    assert "\n" not in outcome.message


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["messages", "role", "content", "log", "text", "from", "x"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(QUICK, max_examples=150)
@given(value=JSON, lines=st.booleans())
def test_arbitrary_json_never_crashes(value: Any, lines: bool) -> None:
    any_outcome((jsonl(value, value) if lines else json.dumps(value)).encode())


@QUICK
@given(data=st.data(), container=st.sampled_from(sorted(CONTAINERS)), packed=st.booleans())
def test_a_cut_file_is_an_error_or_a_whole_number_of_lines(data: st.DataObject, container: str, packed: bool) -> None:
    rows = [{**NEUTRAL, "id": f"n-{i}"} for i in range(3)]
    plain = CONTAINERS[container](rows).encode()
    whole = gzip.compress(plain) if packed else plain
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    outcome = any_outcome(cut)
    if isinstance(outcome, ChatmillError):
        assert outcome.reason == "SOURCE_INVALID"
        return
    assert not packed
    complete = {"lines", "lines without the last break", "blank lines", "windows breaks and byte order mark"}
    assert container in complete or cut.rstrip() == whole.rstrip()
    assert all(len(c.messages) == 3 for c in outcome)


LINE = jsonl(NEUTRAL)
BAD: dict[str, tuple[bytes | str, str]] = {
    "empty": ("", "log: is empty. Export"),
    "white space": (" \n\n ", "empty but for white space"),
    "plain text": ("Hello,\nhow are you?", r"log:1: is not JSON \(the first character of line 1 is neither { nor \["),
    "csv": ("\nid,text\n1,hi", "log:2: is not JSON .*line 2.*JSONL"),
    "zip": (b"PK\x03\x04rest", "a zip archive"),
    "parquet": (b"PAR1....", "a Parquet file"),
    "utf-16": ("x".encode("utf-16"), "UTF-16"),
    "not utf-8": (LINE.encode() + b'{"messages": "caf\xe9"}\n', "log:2: byte 0xe9 is not UTF-8"),
    "gb18030": (LINE.encode() + '{"x": "你好吗"}\n'.encode("gb18030"), "iconv -f gb18030"),
    "not utf-8 in a list": (b'[\n{"messages": "caf\xe9"}]', "log:2: byte 0xe9 is not UTF-8"),
    "bad line": (LINE + "{'id': 1}\n" + LINE, "log:2: is not JSON .* at column 2"),
    "cut line": (LINE + LINE[:40], "log:2: the file is cut off in the middle of this record"),
    "cut list": (json.dumps([NEUTRAL, NEUTRAL], indent=1)[:-30], "the file is cut off"),
    "cut object": ('{"a": ', "the file is cut off"),
    "missing comma": ("[" + json.dumps(NEUTRAL) + json.dumps(NEUTRAL) + "]", "expected ',' or ']'"),
    "trailing text": (json.dumps([NEUTRAL]) + "\nbye", "log:2: something follows the end"),
    "a number on a line": (LINE + "17\n", "log:2: this line is a number, not an object"),
    "a list of texts": ('["a", "b"]', "log:1: this element is a text, not an object"),
    "empty list": ("[]", "log: holds no conversations"),
    "other json": (jsonl({"instruction": "a", "output": "b"}), "its keys: 'instruction', 'output'.*Known: neutral"),
    "other json document": (json.dumps({"a": {"b": 1}}, indent=2), "log:1: is JSON, but not a conversation"),
    "mixed formats": (jsonl(NEUTRAL, NEUTRAL, SHAREGPT), "log:3: .*sharegpt format, but the file began as neutral"),
    "unknown role": (
        jsonl({"messages": [{"role": "customer", "content": "a"}, {"role": "agnet", "content": "b"}]}),
        "log:1: message 1 has the unknown role 'agnet'; did you mean 'agent'",
    ),
    "no role": (jsonl({"messages": [{"role": "agent"}, {"content": "b"}]}), "message 1 has the unknown role None"),
    "message is a text": (jsonl({"messages": [{"role": "agent"}, "b"]}), "message 1 is not an object"),
    "content is a number": (
        jsonl({"messages": [{"role": "agent", "content": 4}]}),
        "message 0 has a content that is not",
    ),
    "context is a list": (jsonl({**NEUTRAL, "context": []}), "'context' is not an object"),
    "bad arguments": (
        jsonl({"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x"}}]}]}),
        "message 0 calls f with arguments that are not a JSON object",
    ),
    "call without name": (jsonl({"messages": [{"role": "assistant", "tool_calls": [{}]}]}), "without function.name"),
    "NaN": (jsonl({**NEUTRAL, "x": float("nan")}), "log:1: is not usable JSON .NaN"),
    "infinity": (LINE + LINE.replace('"id": 7', '"id": 1e999'), "log:2: is not usable JSON .a number is too large"),
    "deep": (LINE + '{"a":' * 100_000, "log:2: "),
    "deep document": ("[" * 100_000, "log:1: "),
    "huge integer": (LINE + '{"a": ' + "1" * 5000 + "}\n", "log:2: is not usable JSON"),
    "cut gzip": (gzip.compress((LINE * 500).encode())[:-20], "the compressed file is cut off here"),
    "damaged gzip": (b"\x1f\x8b" + b"\x08" + b"\x00" * 30, "the compressed data are damaged|cut off"),
    "gzip of nothing": (gzip.compress(b""), "empty"),
}


@pytest.mark.parametrize("name", sorted(BAD))
def test_bad_files_get_one_clear_line(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    with pytest.raises(InvalidArgument, match=message) as caught:
        read(put(tmp_path, content))
    assert caught.value.reason == "SOURCE_INVALID"
    assert caught.value.metadata["file"] == "log"
    assert "\n" not in caught.value.message
    assert caught.value.message.endswith(".")


SECRET = "tok-4711"
QUOTED = {
    "text": f"{SECRET}: ana",
    "other things under messages": json.dumps({"messages": {SECRET: 1}}),
    "content": jsonl({"messages": [{"role": "user", "content": {"key": SECRET}}]}),
    "document": f'["a" {SECRET}]',
    "number": '{"messages": [], "key": 4711e4711}\n',
    "behind gzip": gzip.compress(LINE.encode()) + SECRET.encode(),
}


@pytest.mark.parametrize("name", sorted(QUOTED))
def test_complaints_do_not_quote_the_file(tmp_path: Path, name: str) -> None:
    """But for the keys and the roles of what is nearly a conversation: those say what has to be mended."""
    with pytest.raises(InvalidArgument, match="log") as caught:
        read(put(tmp_path, QUOTED[name]))
    told = f"{caught.value.message} {caught.value.metadata}"
    assert "4711" not in told
    assert "b't" not in told


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    with pytest.raises(InvalidArgument, match="log: is not a regular file"):
        read(tmp_path / "log")


@pytest.mark.parametrize("form", ["line", "document"])
def test_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr("dataset_svc.sources.json_document.MAX_RECORD_BYTES", 1000)
    monkeypatch.setattr(files, "_BLOCK", 100)
    long = {"messages": [{"role": "customer", "content": "x" * 2000}]}
    content = jsonl(NEUTRAL, long) if form == "line" else json.dumps([NEUTRAL, long], indent=1)
    with pytest.raises(InvalidArgument, match="longer than 1,000"):
        read(put(tmp_path, content))


def test_a_long_first_line_is_still_a_line(tmp_path: Path) -> None:
    long = {**NEUTRAL, "context": {"page": "y" * (files._BLOCK * 2)}}
    assert len(read(put(tmp_path, jsonl(long, NEUTRAL)))) == 2


def test_halves_of_characters_are_replaced(tmp_path: Path) -> None:
    row = {
        "messages": [{"role": "user", "content": "a\ud800b 😀"}, {"role": "assistant", "content": "c"}],
        "x\udc00": 1,
    }
    for content in (json.dumps(row) + "\n", json.dumps([row])):
        (found,) = read(put(tmp_path, content))
        assert found.messages[0].content == "a\ufffdb 😀"


def test_the_whole_file_is_never_in_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "big.json"
    with path.open("w") as out:
        out.write("[")
        for i in range(4000):
            out.write("," * (i > 0) + json.dumps({**NEUTRAL, "id": i, "context": {"note": "z" * 6000}}))
        out.write("]")
    assert path.stat().st_size > 24_000_000
    tracemalloc.start()
    count = sum(1 for _ in read_conversations(path, "big"))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 4000
    assert peak < 4_000_000


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    path = put(tmp_path, gzip.compress(jsonl(*[NEUTRAL] * 50).encode()))
    seen = [(r.conversations, r.bytes_read, r.shape) for _, r in read_conversations(path, "log")]
    assert seen[-1] == (50, path.stat().st_size, "neutral")


@pytest.mark.parametrize(
    ("file", "count", "shape"),
    [
        ("star/en_star_dev.jsonl.gz", 2000, "neutral"),
        ("star/en_star_aborted.jsonl.gz", 150, "neutral"),
        ("multiwoz/en_multiwoz_dev.jsonl.gz", 500, "neutral"),
        ("zh/zh_crosswoz_dev.jsonl.gz", 700, "neutral"),
        ("zh/zh_multiwoz_human_dev.jsonl.gz", 250, "neutral"),
        ("abcd/en_abcd_samples.jsonl.gz", 5, "neutral"),
        ("raw_multiwoz/multiwoz21_300.json.gz", 300, "multiwoz"),
    ],
)
def test_public_conversations_load(shared: Path, file: str, count: int, shape: str) -> None:
    path = shared / file
    seen = [(c, r.shape) for c, r in read_conversations(path, file)]
    assert len(seen) == count
    assert {s for _, s in seen} == {shape}
    with gzip.open(path) as raw:
        if shape == "neutral":
            first = json.loads(raw.readline())
            assert [m["content"] for m in first["messages"]] == [m.content for m in seen[0][0].messages]


@pytest.mark.parametrize("file", ["star/star_tasks.json", "abcd/guidelines.json", "abcd/kb.json", "abcd/ontology.json"])
def test_public_files_without_conversations_are_named_as_such(shared: Path, file: str) -> None:
    with pytest.raises(InvalidArgument, match="is JSON, but not a conversation"):
        list(read_conversations(shared / file, file))


def test_places_name_file_and_line() -> None:
    assert str(record.Place("a.jsonl", 3)) == "a.jsonl:3"
