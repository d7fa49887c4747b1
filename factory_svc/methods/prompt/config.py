"""Parameters of the method `prompt`."""

from __future__ import annotations

from dataclasses import dataclass

from factory_svc.methods.parameters import Parameters, parameter


@dataclass(frozen=True, kw_only=True)
class PromptParameters(Parameters):
    """How many examples go into the prompt, and how much room they may take."""

    examples: int = parameter(
        6, "Most exchanges to show the model; 0 keeps the system prompt alone.", minimum=0, maximum=64
    )
    example_characters: int = parameter(
        1600, "Most characters of all examples together, about four per English token.", minimum=0, maximum=1_000_000
    )
    include_handover: bool = parameter(True, "Make one example a handover to a person, if the data has one that fits.")
    candidates: int = parameter(
        2000, "Conversations looked at, drawn by the seed, if the data has more.", minimum=1, maximum=1_000_000
    )
