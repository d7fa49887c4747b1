"""Named steps through which every conversation goes, each counted. To add one, add a file and name it in `STEPS`.

The order matters: text is mended before emptiness is judged, empty messages go before neighbours are merged, and
duplicates are found among what is left.
"""

from __future__ import annotations

from dataset_svc.cleaning.bursts import Bursts
from dataset_svc.cleaning.control_characters import ControlCharacters
from dataset_svc.cleaning.duplicates import Duplicates
from dataset_svc.cleaning.empty import EmptyMessages
from dataset_svc.cleaning.no_assistant import NoAssistant
from dataset_svc.cleaning.over_long import OverLong
from dataset_svc.cleaning.step import Dropped, Kept, Report, Step, Tally
from dataset_svc.conversation import Conversation
from dataset_svc.sources.shape import DROPPED_PARTS

STEPS: tuple[type[Step], ...] = (ControlCharacters, EmptyMessages, Bursts, NoAssistant, OverLong, Duplicates)
"""The steps in the order in which they run."""


class Cleaning:
    """One run of all steps over the conversations of a dataset."""

    def __init__(self) -> None:
        self.report = Report()
        self._steps = [step() for step in STEPS]

    def __call__(self, conversation: Conversation) -> Conversation | None:
        """The cleaned conversation, or None if a step dropped it; either is counted in `report`."""
        if conversation.annotations.get(DROPPED_PARTS):
            self.report.change("source", "left out parts that are not text (pictures, sound)", conversation.place)
        for step in self._steps:
            result = step(conversation)
            if isinstance(result, Dropped):
                self.report.drop(step.name, result.reason, conversation.place)
                return None
            if result.change is not None:
                self.report.change(step.name, result.change, conversation.place)
            conversation = result.conversation
        return conversation


__all__ = ["STEPS", "Cleaning", "Dropped", "Kept", "Report", "Step", "Tally"]
