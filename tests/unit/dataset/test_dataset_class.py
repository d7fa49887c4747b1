"""The class that a client subclasses, the built-in one, handovers, facts, languages."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch.utils.data

from chatmill.errors import FailedPrecondition, InvalidArgument, NotFound
from dataset_svc import language
from dataset_svc.catalog import Catalog
from dataset_svc.classes import DATASET_CLASSES, Conversations
from dataset_svc.conversation import TRANSFER_TO_HUMAN, Conversation
from dataset_svc.dataset import ConversationDataset, Item
from dataset_svc.facts import from_context
from dataset_svc.parameters import describe

from .conftest import Make


def log(path: Path, *rows: Mapping[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def row(*said: str, **more: Any) -> dict[str, Any]:
    roles = {"c": "customer", "a": "agent", "h": "human_agent"}
    return {"messages": [{"role": roles[s[0]], "content": s[2:]} for s in said], **more}


@dataclass(frozen=True)
class ShoutParameters:
    """How loud is too loud.

    Attributes:
        letters: capital letters from which on a message is shouting,
            counted in the whole message.
    """

    letters: int = 5

    def __post_init__(self) -> None:
        if self.letters < 1:
            raise ValueError("letters must be at least 1")


class Shouting(ConversationDataset):
    """Label: loud or calm. Handover: at the first shout."""

    Parameters: ClassVar[type[Any]] = ShoutParameters

    def label(self, item: Conversation) -> str | None:
        return "calm" if self.human_intervention_idx(item) is None else "loud"

    def human_intervention_idx(self, item: Conversation) -> int | None:
        for index, message in enumerate(item.messages):
            if message.role == "user" and sum(map(str.isupper, message.content)) >= self.parameters.letters:
                return index
        return None

    def human_intervention_reason(self, item: Conversation, index: int) -> str:
        return "anger"


class Foreign(ConversationDataset):
    """Reads a log of its own form."""

    def read(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            "id": record["nr"],
            "messages": [
                {"role": "customer" if who == "K" else "agent", "content": text} for who, text in record["lines"]
            ],
        }


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**DATASET_CLASSES._entries, "shouting": Shouting, "foreign": Foreign}
    monkeypatch.setattr(DATASET_CLASSES, "_entries", known)


def test_a_clients_class_labels_and_finds_the_handover(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    path = log(tmp_path / "log", row("c hello", "a hi"), row("c Hi", "a yes?", "c NO GOOD", "a sorry", "c ok", "a bye"))
    made = make(path, dataset_class="shouting", parameters={"letters": 4})
    assert made.manifest.parameters == {"letters": 4}
    calm, loud = catalog.dataset("d")
    assert (calm.label, calm.human_intervention_idx, calm.handover) == ("calm", None, None)
    assert (loud.label, loud.human_intervention_idx) == ("loud", 3)  # the assistant's turn after the shout
    assert loud.handover is not None
    assert loud.handover.reason == "anger"
    context = loud.get_context(3)
    assert [m.content for m in context.messages] == ["Hi", "yes?", "NO GOOD"]
    with pytest.raises(InvalidArgument, match="turn"):
        loud.get_context(7)


def test_a_class_may_read_a_format_of_its_own(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    lines = [{"nr": 7, "lines": [["K", "Moin"], ["W", "Guten Tag"]]}]
    made = make(log(tmp_path / "log", *lines), dataset_class="foreign")
    assert made.manifest.sources[0].format == "foreign"
    assert [m.role for m in catalog.dataset("d")[0].messages] == ["user", "assistant"]
    with pytest.raises(InvalidArgument, match=r"log2:1: the dataset class foreign can't read this record \(KeyError"):
        make(log(tmp_path / "log2", {"nr": 1}), dataset_class="foreign", dataset_id="e")


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("label", 5, r"Shouting.label answered 5, not a text"),
        ("human_intervention_idx", 9, r"answered 9, but the conversation has 2 messages"),
        ("human_intervention_idx", "1", r"answered '1'"),
        ("language", None, r"Shouting.language answered None"),
        ("facts", ["a text"], r"Shouting.facts answered something else"),
        ("label", KeyError("x"), r"Shouting.label raised KeyError: 'x', for the conversation log-1 \(.*log:1\)"),
    ],
)
def test_a_failing_class_is_named_with_the_conversation(
    tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch, method: str, answer: Any, message: str
) -> None:
    def answering(*_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(Shouting, method, answering)
    with pytest.raises(FailedPrecondition, match=message) as caught:
        make(log(tmp_path / "log", row("c a", "a b")), dataset_class="shouting")
    assert caught.value.reason == "DATASET_CLASS_FAILED"


def test_parameters_are_checked_before_any_work(tmp_path: Path, make: Make) -> None:
    with pytest.raises(InvalidArgument, match=r"parameters.leters: unknown parameter; did you mean 'letters'"):
        make(tmp_path / "missing", dataset_class="shouting", parameters={"leters": 1})
    with pytest.raises(InvalidArgument, match="at least 1"):
        make(tmp_path / "missing", dataset_class="shouting", parameters={"letters": 0})
    with pytest.raises(NotFound, match="did you mean 'shouting'"):
        make(tmp_path / "missing", dataset_class="shoutin")
    (described,) = describe(ShoutParameters)
    assert described.description.endswith("shouting, counted in the whole message.")
    assert (described.type, described.default_json) == ("int", "5")


def test_it_is_a_torch_dataset_for_loaders_with_workers(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(
        log(tmp_path / "log", *[row(f"c question {'x' * i}", "a answer") for i in range(20)]), dataset_class="shouting"
    )
    dataset = catalog.dataset("d")
    assert isinstance(dataset, torch.utils.data.Dataset)
    assert len(dataset) == 20
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=4, num_workers=2, collate_fn=list, multiprocessing_context="fork"
    )
    loaded = [item for batch in loader for item in batch]
    assert [i.id for i in loaded] == [i.id for i in dataset]
    assert loaded[3].get_context(1).messages == dataset[3].get_context(1).messages
    again: ConversationDataset = pickle.loads(pickle.dumps(dataset))
    assert again[5] == dataset[5] or again[5].conversation == dataset[5].conversation
    assert len(pickle.dumps(dataset[5])) < 5000  # an item must not drag its dataset along


def test_rows_in_memory_work_like_stored_ones() -> None:
    from dataset_svc.conversation import Message

    dataset = Conversations([Conversation("c", (Message("user", "Hi"), Message("assistant", "Hello")))])
    item = dataset[0]
    assert isinstance(item, Item)
    assert (len(dataset), item.label, item.language) == (1, None, "en")
    assert item.get_context(2).messages == item.messages


@pytest.mark.parametrize(
    ("more", "index", "reason"),
    [
        ({}, None, ""),
        ({"human_intervention_idx": 3}, 3, "unspecified"),
        ({"annotations": {"human_intervention_idx": 2}}, 3, "unspecified"),
        ({"annotations": {"human_intervention_idx": -1}}, None, ""),
        ({"annotations": {"handover": {"index": 1, "reason": "legal"}}}, 1, "legal"),
        ({"annotations": {"handover": [3, "fraud"]}}, 3, "fraud"),
        ({"annotations": {"handover": False}}, None, ""),
        ({"annotations": {"handover": {"index": 4, "reason": "late"}}}, 5, "late"),
    ],
)
def test_annotated_handovers(
    tmp_path: Path, make: Make, catalog: Catalog, more: dict[str, Any], index: int | None, reason: str
) -> None:
    make(log(tmp_path / "log", row("c a", "a b", "c d", "a e", "c f", **more)))
    item = catalog.dataset("d")[0]
    assert item.human_intervention_idx == index
    assert (item.handover.reason if item.handover else "") == reason
    if index == 5:  # the log ends before the turn that should have come
        assert item.messages[5].handover is not None
        assert item.messages[5].handover.arguments == {"reason": "late"}


@pytest.mark.parametrize("value", [99, "soon", {"at": 1}, [1, 2, 3]])
def test_impossible_annotations_are_refused(tmp_path: Path, make: Make, value: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"log:1: annotations.handover"):
        make(log(tmp_path / "log", row("c a", "a b", annotations={"handover": value})))


def test_a_person_in_the_log_means_the_turn_before_hands_over(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(
        log(
            tmp_path / "log",
            row("c a", "a one moment", "h Ben here", "c b", "h done"),
            row("c a", "h Ben here", "c bye"),
        )
    )
    first, second = catalog.dataset("d")
    assert first.human_intervention_idx == 1
    assert first.messages[1].content == "one moment"
    assert first.messages[1].handover is not None
    assert second.human_intervention_idx == 1
    assert (second.messages[1].content, second.messages[1].by_person) == ("", False)
    assert [m.by_person for m in second.messages] == [False, False, True, False]


def test_a_clients_own_handover_tool(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    line = row("c a", "a b")
    line["messages"].append({"role": "action", "name": "notify-team", "kind": "call", "content": "told the manager"})
    line["messages"].append({"role": "agent", "content": "They will call you."})
    make(log(tmp_path / "log", line), parameters={"handover_tool": "notify-team"})
    assert catalog.dataset("d")[0].human_intervention_idx == 3


def test_a_call_in_openai_form_is_a_handover(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    call = {"function": {"name": TRANSFER_TO_HUMAN, "arguments": '{"reason": "injury"}'}}
    messages = [{"role": "user", "content": "It burns"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
    make(log(tmp_path / "log", {"messages": messages}))
    item = catalog.dataset("d")[0]
    assert item.human_intervention_idx == 1
    assert item.handover is not None
    assert item.handover.reason == "injury"


def test_facts_are_given_or_made_from_what_an_agent_sees() -> None:
    given = from_context({"facts": ["VIP  customer.", [3, "Asked for a refund."]], "customer": {"name": "x"}})
    assert [(f.text, f.since) for f in given] == [("VIP customer.", 0), ("Asked for a refund.", 3)]
    derived = from_context(
        {
            "customer_task": "pretend to be angry",
            "goal": {"x": 1},
            "customer": {"customer_name": "crystal minh", "vip": True, "note": None},
            "order": {"items": ["kettle", "cup"], "blob": "z" * 500},
            "city": "北京",
        }
    )
    assert [f.text for f in derived] == [
        "Customer name: crystal minh.",
        "Customer vip: yes.",
        "Order items: kettle, cup.",
        "City: 北京.",
    ]
    assert from_context({"facts": [], "city": "x"}) == []


@pytest.mark.parametrize("facts", ["text", [1], [["x", "y"]], [[1, 2]], ["x"] * 101, ["x" * 3000], [[-1, "x"]]])
def test_bad_facts_are_refused_with_their_place(tmp_path: Path, make: Make, facts: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"log:1: .*context.facts"):
        make(log(tmp_path / "log", row("c a", "a b", context={"facts": facts})))


def test_facts_that_came_up_later_belong_to_later_turns(tmp_path: Path, make: Make, catalog: Catalog) -> None:
    make(log(tmp_path / "log", row("c a", "c b", "a c", "c d", "a e", context={"facts": ["now", [3, "later"]]})))
    item = catalog.dataset("d")[0]
    assert item.known_facts == ("now",)
    assert [item.get_context(turn).facts for turn in range(4)] == [
        ("now",),
        ("now",),
        ("now", "later"),
        ("now", "later"),
    ]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my order?", "en"),
        ("你好，我的订单在哪里？", "zh"),
        ("我的 iPhone 15 Pro Max 订单在哪里？谢谢你们的帮助", "zh"),
        ("ご注文の確認をお願いします", "ja"),
        ("주문 확인 부탁드립니다", "ko"),
        ("Где мой заказ?", "ru"),
        ("Wo bleibt denn meine Bestellung?", "und"),
        ("12345 !!", "und"),
        ("", "und"),
    ],
)
def test_language_by_script(text: str, code: str) -> None:
    assert language.detect([text]) == code


def test_a_dataset_whose_class_is_gone_says_so(
    tmp_path: Path, make: Make, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(log(tmp_path / "log", row("c a", "a b")), dataset_class="shouting")
    monkeypatch.setattr(DATASET_CLASSES, "_entries", {"conversations": Conversations})
    assert catalog.item("d", 0)[1].label == "calm"
    with pytest.raises(FailedPrecondition, match="not installed here"):
        catalog.context("d", "log-1", 1)


def test_a_mark_between_two_turns_of_a_person_adds_the_call_there() -> None:
    from dataset_svc.conversation import Message, ToolCall
    from dataset_svc.handover import Handover, at_assistant_turn

    looked_up = Message("assistant", "I look it up", (ToolCall("find", {}),), by_person=True)
    conversation = Conversation("c", (Message("user", "a"), looked_up, Message("assistant", "Done", by_person=True)))
    longer, found = at_assistant_turn(conversation, Handover(2, "late"))
    assert found == Handover(2, "late")
    assert longer.messages[1] == looked_up
    assert longer.messages[2].handover is not None
    assert longer.messages[3].content == "Done"
