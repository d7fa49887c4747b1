"""The class that a client subclasses to say what its conversations mean.

A subclass states its criteria in its docstring and answers, for one conversation at a time: which label it has, where a
person should have taken over, what was known about the customer. It is registered by name:

    @DATASET_CLASSES.register("shop")
    class ShopConversations(ConversationDataset):
        \"\"\"Label: the topic of the first request. Handover: at the first complaint.\"\"\"

        def label(self, item: Conversation) -> str | None: ...

A third party names it in the entry-point group `chatmill.datasets` instead. This module knows no file and no store;
it is the one place in the service that needs torch, because trainers outside Chatmill expect a
`torch.utils.data.Dataset`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch.utils.data import Dataset

from chatmill.errors import FailedPrecondition, InvalidArgument
from chatmill.plugins import Registry, parse_parameters
from dataset_svc import handover, language
from dataset_svc.conversation import Conversation, Message
from dataset_svc.facts import Fact, from_context
from dataset_svc.handover import Handover
from dataset_svc.text import clean

LABEL_KEYS = ("label", "intent", "subflow", "domain")
"""Annotations that `ConversationDataset.label` looks at, in this order."""


@dataclass(frozen=True)
class NoParameters:
    """A dataset class without parameters."""


@dataclass(frozen=True, slots=True)
class Context:
    """What an agent had before it when a turn was to be spoken.

    Attributes:
        messages: the messages before the turn, in order of time.
        facts: what was known about the customer by then, one line each.
    """

    messages: tuple[Message, ...]
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One conversation of a dataset with what its class found in it.

    Attributes:
        conversation: the cleaned conversation.
        label: the class's label, or None.
        handover: the turn at which a person should have taken over, or None.
        facts: what was known about the customer; `since` counts `messages`.
        language: BCP 47 code, or `und`.
        split: `train`, `test`, or empty before the split is made.
        rules: the dataset's class with its parameters and without rows, so that an item can answer for itself.
    """

    conversation: Conversation
    label: str | None
    handover: Handover | None
    facts: tuple[Fact, ...]
    language: str
    split: str = ""
    rules: ConversationDataset | None = None

    @property
    def id(self) -> str:
        """Id of the conversation, unique in its dataset."""
        return self.conversation.id

    @property
    def messages(self) -> tuple[Message, ...]:
        """The messages in order of time."""
        return self.conversation.messages

    @property
    def human_intervention_idx(self) -> int | None:
        """Index of the assistant message at which a person should have taken over, or None."""
        return self.handover.index if self.handover else None

    @property
    def known_facts(self) -> tuple[str, ...]:
        """The facts known from the beginning, which go to the system prompt."""
        return tuple(fact.text for fact in self.facts if fact.since == 0)

    def get_context(self, turn: int) -> Context:
        """What the agent had before it at message number `turn` (see `ConversationDataset.get_context`)."""
        rules = self.rules if self.rules is not None else ConversationDataset()
        return rules.get_context(self, turn)


class ConversationDataset(Dataset[Item]):
    """Conversations with the criteria by which they are labelled.

    Label: the source's own (`label`, `intent`, `subflow` or `domain`). Handover: where the source marks it (an
    annotation, a call of transfer_to_human, a message by a person). Facts: `context.facts`, or profile, order and
    session fields.

    A subclass replaces this text by its own criteria; ListDatasetClasses shows it. All methods must be pure: the same
    conversation always gets the same answer, in any process and order.

    Args:
        rows: conversations as they are after cleaning, or finished items (of a stored dataset).
        parameters: values for `Parameters`, checked here.

    Raises:
        InvalidArgument: a parameter is unknown or wrong.
    """

    Parameters: ClassVar[type[Any]] = NoParameters
    """Dataclass of the class's parameters; each field's meaning belongs into its docstring."""

    def __init__(
        self, rows: Sequence[Conversation] | Sequence[Item] = (), parameters: Mapping[str, Any] | None = None
    ) -> None:
        self.rows = rows
        self.parameters: Any = parse_parameters(self.Parameters, parameters or {})
        self._rules: Self | None = None

    def read(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """The record of a client's own log format, turned into the neutral shape.

        Override it when the log is in none of the formats that are recognised by content; every JSON object of the
        source is then given to it. Raise ValueError for a record that isn't a conversation.
        """
        raise NotImplementedError("a class without its own format is never asked")

    def label(self, item: Conversation) -> str | None:
        """The conversation's label, or None. Default: the source's own."""
        return next((str(item.annotations[key]) for key in LABEL_KEYS if item.annotations.get(key)), None)

    def human_intervention_idx(self, item: Conversation) -> int | None:
        """Index of the message where a person should have taken over, or None. Default: where the source marks it."""
        found = handover.find(item)
        return found.index if found else None

    def human_intervention_reason(self, item: Conversation, index: int) -> str:
        """Why a person should have taken over at `index`: the reason that the model learns to give."""
        found = handover.find(item)
        return found.reason if found else handover.UNKNOWN_REASON

    def facts(self, item: Conversation) -> Sequence[Fact]:
        """What was known about the customer; `since` counts the source's messages."""
        return from_context(item.context)

    def language(self, item: Conversation) -> str:
        """BCP 47 code of the conversation's language. Default: the source's annotation, else told by the script."""
        given = item.annotations.get("language")
        if isinstance(given, str) and given.strip():
            return given.strip()
        return language.detect(m.content for m in item.messages if m.role in ("user", "assistant"))

    def get_context(self, item: Item, turn: int) -> Context:
        """The history before message number `turn` and the facts known by then.

        Args:
            item: the item.
            turn: zero-based index of the message that is about to be spoken; the number of messages gives all.

        Raises:
            InvalidArgument: there is no such turn.
        """
        if not 0 <= turn <= len(item.messages):
            raise InvalidArgument.field("turn", f"must be between 0 and {len(item.messages)} for {item.id}, not {turn}")
        return Context(item.messages[:turn], tuple(fact.text for fact in item.facts if fact.since <= turn))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        row = self.rows[index]
        return replace(row, rules=self.rules) if isinstance(row, Item) else self.item(row)

    @property
    def rules(self) -> Self:
        """This class with its parameters and no rows: what an item carries to another process."""
        if self._rules is None:
            self._rules = copy.copy(self)
            self._rules.rows = ()
        return self._rules

    @classmethod
    def criteria(cls) -> str:
        """What the class's own docstring says, for people who choose among classes; empty if it has none."""
        return inspect.cleandoc(cls.__dict__.get("__doc__") or "")

    @classmethod
    def reads_own_format(cls) -> bool:
        """True if the class overrides `read`, so that its source is not to be recognised by content."""
        return cls.read is not ConversationDataset.read

    def item(self, conversation: Conversation) -> Item:
        """The conversation with what this class finds in it.

        Raises:
            FailedPrecondition: reason `DATASET_CLASS_FAILED`; a method raised or answered something impossible.
            InvalidArgument: the source's annotations contradict the conversation.
        """
        label = self._ask("label", conversation, self.label, conversation)
        if label is not None and not isinstance(label, str):
            raise self._failed("label", conversation, f"answered {label!r}, not a text or None")
        found, conversation = self._handover(conversation)
        facts = self._ask("facts", conversation, self.facts, conversation)
        code = self._ask("language", conversation, self.language, conversation)
        if not isinstance(code, str):
            raise self._failed("language", conversation, f"answered {code!r}, not a text")
        if not all(isinstance(fact, Fact) for fact in facts):
            raise self._failed("facts", conversation, "answered something else than a list of Fact")
        return Item(
            conversation,
            clean(label) if label else None,
            found,
            tuple(Fact(clean(f.text), conversation.index_of(f.since) if f.since else 0) for f in facts),
            clean(code),
            rules=self.rules,
        )

    def _handover(self, conversation: Conversation) -> tuple[Handover | None, Conversation]:
        index = self._ask("human_intervention_idx", conversation, self.human_intervention_idx, conversation)
        if index is None:
            return None, conversation
        if type(index) is not int or not 0 <= index <= len(conversation.messages):
            problem = f"answered {index!r}, but the conversation has {len(conversation.messages)} messages"
            raise self._failed("human_intervention_idx", conversation, problem)
        ask = self.human_intervention_reason
        reason = clean(str(self._ask("human_intervention_reason", conversation, ask, conversation, index)))
        longer, found = handover.at_assistant_turn(conversation, Handover(index, reason))
        return found, longer

    def _ask(self, method: str, conversation: Conversation, function: Any, *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise InvalidArgument(
                f"{conversation.place or conversation.id}: {error}. Mend this conversation.", reason="SOURCE_INVALID"
            ) from error
        except Exception as error:
            raise self._failed(method, conversation, f"raised {type(error).__name__}: {error}") from error

    def _failed(self, method: str, conversation: Conversation, problem: str) -> FailedPrecondition:
        return FailedPrecondition(
            f"dataset class {type(self).__name__}.{method} {problem}, for the conversation {conversation.id} "
            f"({conversation.place or 'no place'}). Mend the class, or choose another.",
            reason="DATASET_CLASS_FAILED",
            metadata={"class": type(self).__name__, "method": method, "conversation": conversation.id},
        )


DATASET_CLASSES: Registry[type[ConversationDataset]] = Registry("dataset class", "chatmill.datasets")
"""All dataset classes by name; built-ins are registered by importing `dataset_svc.classes`."""
