"""The class for logs that bring their labels along."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from dataset_svc.conversation import Conversation
from dataset_svc.dataset import DATASET_CLASSES, ConversationDataset


@dataclass(frozen=True)
class ConversationsParameters:
    """How to read the labels.

    Attributes:
        label_key: annotation that holds the label; without it the first of label, intent, subflow and domain.
        handover_tool: name of the source's own tool by which its agents called a person, besides transfer_to_human.
    """

    label_key: str | None = None
    handover_tool: str | None = None


@DATASET_CLASSES.register("conversations")
class Conversations(ConversationDataset):
    """Takes what the log says about itself.

    Label: the annotation `label_key`, else the first of label, intent, subflow and domain.
    Handover: where the log marks it, by the annotation human_intervention_idx or handover, by a call of the tool
    transfer_to_human (or of `handover_tool`), or by the first message of a person who took over.
    Language: the annotation language, else by script. Facts: context.facts, else profile, account, order and session
        fields.
    """

    Parameters: ClassVar[type[ConversationsParameters]] = ConversationsParameters
    parameters: ConversationsParameters

    def label(self, item: Conversation) -> str | None:
        """See the class."""
        if self.parameters.label_key is None:
            return super().label(item)
        value = item.annotations.get(self.parameters.label_key)
        return None if value is None else str(value)

    def human_intervention_idx(self, item: Conversation) -> int | None:
        """See the class."""
        marked = super().human_intervention_idx(item)
        tool = self.parameters.handover_tool
        if marked is not None or tool is None:
            return marked
        for index, message in enumerate(item.messages):
            if (message.role == "tool" and message.name == tool) or any(c.name == tool for c in message.tool_calls):
                return index
        return None
