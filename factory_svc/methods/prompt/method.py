"""Makes a model entry out of words alone: the base stays, the prompt is the model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from factory_svc.methods.base import METHODS, Loop
from factory_svc.methods.parameters import Parameters
from factory_svc.methods.prompt.config import PromptParameters
from factory_svc.methods.prompt.selection import select_examples
from factory_svc.task import DataCounters, Messages, Progress, TrainingOutcome, TrainingTask


class Prompt:
    """System prompt and few-shot examples; works on any base, remote providers included."""

    name = "prompt"
    summary = "Train no weights: keep the system prompt and choose few-shot examples from the data."
    parameters: type[Parameters] = PromptParameters
    kind = "prompt"
    needs_base = True

    def run(
        self,
        task: TrainingTask,
        parameters: PromptParameters,
        conversations: list[Messages],
        folder: Path,
        loop: Loop,
    ) -> TrainingOutcome:
        """See `TrainingMethod.run`; `folder` stays empty."""
        system = task.system_prompt or _common_system_prompt(conversations)
        examples = select_examples(conversations, parameters, task.seed)
        loop.report(Progress(step=1, total_steps=1, phase="training", note=f"{len(examples)} examples chosen."))
        shown = f"{len(examples)} of {len(conversations)} conversations gave an example exchange."
        return TrainingOutcome(
            kind=self.kind,
            output=task.output,
            parameters=parameters.resolved(),
            data=DataCounters(examples_read=len(conversations), examples_trained=len(examples)),
            steps=1,
            prompt={"system_prompt": system, "examples": [dataclasses.asdict(e) for e in examples]},
            notes=(shown,),
        )


def _common_system_prompt(conversations: list[Messages]) -> str:
    """The system turn that most conversations start with, or an empty text."""
    counts: dict[str, int] = {}
    for messages in conversations:
        if messages and messages[0]["role"] == "system":
            counts[messages[0]["content"]] = counts.get(messages[0]["content"], 0) + 1
    return max(counts, key=lambda text: counts[text]) if counts else ""


METHODS.register(Prompt.name)(Prompt())
