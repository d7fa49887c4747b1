"""The dataset class of the made-up shop: what its conversations mean."""

from collections.abc import Sequence
from typing import Any, cast

from dataset_svc.conversation import Conversation
from dataset_svc.dataset import DATASET_CLASSES, ConversationDataset
from dataset_svc.facts import Fact

REASONS = ("complaint", "legal", "injury", "request", "fraud", "safety")


@DATASET_CLASSES.register("shop")
class ShopConversations(ConversationDataset):
    """Conversations of the online shop Kettlemoor.

    Label: what the customer wanted first, a policy's id (`returns`, `delivery-cost`) or an act (`greet`, `privacy`).
    Handover: at the agent's message before the call of transfer_to_human. A person must take over for complaints in
    anger, legal threats, injuries, fraud, danger to the customer, and whenever a person is asked for.
    Facts: the customer's name, the order and the earlier visit, as the agent saw them from the start.
    """

    def label(self, item: Conversation) -> str | None:
        """The first act of the annotation `acts`, else what the log calls the label."""
        acts = item.annotations.get("acts")
        return str(acts[0]) if isinstance(acts, list) and acts else super().label(item)

    def human_intervention_idx(self, item: Conversation) -> int | None:
        """Where the log marks the handover; a reason that the agent card does not know is a mistake in the log."""
        index = super().human_intervention_idx(item)
        if index is not None and (reason := super().human_intervention_reason(item, index)) not in REASONS:
            raise ValueError(f"handover for {reason!r}, which is none of {', '.join(REASONS)}")
        return index

    def facts(self, item: Conversation) -> Sequence[Fact]:
        """The lines of `context.facts`; a profile is not read, since its lines would say the same twice."""
        lines = cast(list[Any], item.context.get("facts", []))
        return [Fact(str(line)) for line in lines]


__all__ = ["REASONS", "ShopConversations"]
