"""The recipe as data: one dataclass per section of the file. `docs/recipe.md` is the manual.

This module knows no service; `chatmill.recipe.reading` makes these from a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatmill.agent import AgentCard


@dataclass(frozen=True, slots=True)
class DatasetSection:
    """Which conversations, and how they are labelled and split.

    Attributes:
        sources: files to read, in order; all go into one dataset.
        id: id of the dataset; the recipe's name without it.
        class_: dataset class that labels the items.
        parameters: parameters of the class.
        languages: train only on conversations of these languages (BCP 47); all when empty.
        test_fraction: share of conversations held back for testing, 0 to 0.9.
        seed: seed of the split.
        limit: read at most so many conversations; 0 means all.
    """

    sources: tuple[str, ...]
    id: str = ""
    class_: str = "conversations"
    parameters: dict[str, Any] = field(default_factory=dict)
    languages: tuple[str, ...] = ()
    test_fraction: float = 0.1
    seed: int = 0
    limit: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one file")
        if not 0 <= self.test_fraction <= 0.9:
            raise ValueError(f"test_fraction must be between 0 and 0.9, not {self.test_fraction}")
        if self.limit < 0:
            raise ValueError(f"limit must be 0 (all) or more, not {self.limit}")


@dataclass(frozen=True, slots=True)
class MethodSection:
    """How the model is made.

    Attributes:
        name: training method.
        base: model to stand on: a name in the registry, a folder, or a Hugging Face hub id. Empty for `scratch`.
        model_id: id of the model that is made; the recipe's name without it.
        parameters: parameters of the method.
        seed: seed of everything random in training.
        skip_tool_messages: leave out what tools gave back; otherwise it stays as context.
    """

    name: str = "lora"
    base: str = "chatmill-tiny"
    model_id: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    skip_tool_messages: bool = False

    def __post_init__(self) -> None:
        if not self.base and self.name != "scratch":
            raise ValueError(f"base is required by the method {self.name}; only scratch does without")


@dataclass(frozen=True, slots=True)
class ReplaySection:
    """A suite made from held-back conversations.

    Attributes:
        max_conversations: at most so many conversations; 0 means all.
        max_turns: at most so many agent turns of each; 0 means all.
        pass_ratio: a reply passes if it is at least this similar to the agent's, 0 to 100.
    """

    max_conversations: int = 0
    max_turns: int = 0
    pass_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.max_conversations < 0 or self.max_turns < 0:
            raise ValueError("max_conversations and max_turns must be 0 (all) or more")
        if self.pass_ratio is not None and not 0 <= self.pass_ratio <= 100:
            raise ValueError(f"pass_ratio must be between 0 and 100, not {self.pass_ratio}")


@dataclass(frozen=True, slots=True)
class SuiteSection:
    """What the model is asked, and how; exactly one of `path` and `replay`.

    Attributes:
        path: folder or file of scenarios, or `suites/{id}` of an installed suite.
        replay: a suite made from held-back conversations instead.
        tags: only scenarios with one of these tags; all when empty.
        seed: seed from which those of all trials derive.
        concurrency: conversations at once; the service decides without it.
        max_output_tokens: longest reply; the service decides without it.
        temperature: sampling temperature of both sides; 0 (greedy) without it.
        turn_timeout_seconds: a reply that isn't complete by then is an error; the service decides without it.
        judge: model that answers judge criteria; without it they stay unscored.
        customer: model that plays simulated customers; scenarios with one stay unplayed without it.
    """

    path: str = ""
    replay: ReplaySection | None = None
    tags: tuple[str, ...] = ()
    seed: int = 0
    concurrency: int | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    turn_timeout_seconds: float | None = None
    judge: str = ""
    customer: str = ""

    def __post_init__(self) -> None:
        if bool(self.path) == (self.replay is not None):
            raise ValueError("needs exactly one of path and replay")
        if self.concurrency is not None and self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}")
        if self.max_output_tokens is not None and self.max_output_tokens < 1:
            raise ValueError(f"max_output_tokens must be at least 1, not {self.max_output_tokens}")
        if self.temperature is not None and not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature must be between 0 and 2, not {self.temperature}")
        if self.turn_timeout_seconds is not None and self.turn_timeout_seconds <= 0:
            raise ValueError(f"turn_timeout_seconds must be greater than 0, not {self.turn_timeout_seconds:g}")


@dataclass(frozen=True, slots=True)
class GateSection:
    """When the model is good enough. What is left out is not asked for.

    Attributes:
        min_pass_rate: smallest pass rate, 0 to 1.
        min_difference: smallest difference to the baseline, -1 to 1; the lower end of its interval must be above it.
        min_pass_hat_k: smallest pass^k, with k trials, 0 to 1.
        max_p95_ms: longest p95 of a whole reply, in milliseconds.
        max_critical: most scenarios with a critical error; without it none that the baseline doesn't have.
    """

    min_pass_rate: float | None = None
    min_difference: float | None = None
    min_pass_hat_k: float | None = None
    max_p95_ms: float | None = None
    max_critical: int | None = None

    def __post_init__(self) -> None:
        for name, low in (("min_pass_rate", 0), ("min_difference", -1), ("min_pass_hat_k", 0)):
            value = getattr(self, name)
            if value is not None and not low <= value <= 1:
                raise ValueError(f"{name} is a share and must be between {low} and 1, not {value:g}")
        if self.max_p95_ms is not None and self.max_p95_ms <= 0:
            raise ValueError(f"max_p95_ms must be greater than 0, not {self.max_p95_ms:g}")
        if self.max_critical is not None and self.max_critical < 0:
            raise ValueError(f"max_critical must be 0 or more, not {self.max_critical}")


@dataclass(frozen=True, slots=True)
class RecipeTree:
    """The recipe as it stands in the file, checked one value at a time.

    Attributes:
        agent: path of the agent card.
        dataset: which conversations.
        suite: what the model is asked.
        schema: version of this table; 1.
        name: name of the recipe, and of what it makes; that of its folder without it.
        method: how the model is made.
        baseline: model to compare with; the base, under the same system prompt, without it.
        trials: how often each scenario is played; the suite decides without it.
        gate: when the model is good enough.
        promote: alias that points to the model once the gate has passed; none when empty.
    """

    agent: str
    dataset: DatasetSection
    suite: SuiteSection
    schema: int = 1
    name: str = ""
    method: MethodSection = field(default_factory=MethodSection)
    baseline: str = ""
    trials: int | None = None
    gate: GateSection = field(default_factory=GateSection)
    promote: str = ""

    def __post_init__(self) -> None:
        if self.schema != 1:
            raise ValueError(f"schema must be 1, not {self.schema}; a newer Chatmill may read it")
        if self.trials is not None and not 1 <= self.trials <= 100:
            raise ValueError(f"trials must be between 1 and 100, not {self.trials}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe that is ready to run: names and paths resolved, the agent card read.

    Attributes:
        path: the file.
        name: its name.
        card: the agent.
        dataset: with absolute paths and its id.
        method: with its model id; `base` is absolute if it is a folder.
        suite: `path` is absolute unless it is the name of an installed suite.
        baseline: resource name of a model; empty for the base.
        trials: how often each scenario is played, or None.
        gate: when the model is good enough.
        promote: alias, or empty.
        origins: dotted key to where it was written, `file:line` or `--set key`.
    """

    path: Path
    name: str
    card: AgentCard
    dataset: DatasetSection
    method: MethodSection
    suite: SuiteSection
    baseline: str
    trials: int | None
    gate: GateSection
    promote: str
    origins: Mapping[str, str]

    def where(self, key: str) -> str:
        """Where the dotted `key`, or its nearest parent, was written, with the key: the beginning of a message."""
        spelled, known = key.replace("class_", "class"), key
        while known not in self.origins and "." in known:
            known = known.rpartition(".")[0]
        origin = self.origins.get(known, str(self.path))
        return origin if origin.startswith("--set") else f"{origin}: {spelled}"
