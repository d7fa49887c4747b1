"""The language check, by the script of the letters.

It tells Chinese from English, not English from French: short replies give a statistical detector too little to go
by, while their script is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval_svc.scorers.base import SCORERS, Check, Finding, View, verdict
from eval_svc.text import letters, script_share


@SCORERS.register("language")
@dataclass(frozen=True)
class Language(Check):
    """Passes if most letters of the text are of the language's script.

    Attributes:
        value: ISO 639-1 code such as `en` or `zh`; empty: the language of the scenario's persona.
        min_letters: with fewer letters there is nothing to judge.
        min_share: the least share of letters in that script, 0 to 1.
    """

    value: str = ""
    min_letters: int = 6
    min_share: float = 0.6

    error = "wrong_language"
    forbidden_error = "wrong_language"

    def __post_init__(self) -> None:
        if not 0 < self.min_share <= 1:
            raise ValueError(f"min_share must be above 0 and at most 1, not {self.min_share}")

    def score(self, view: View) -> Finding:
        """The score is the share of letters in the right script."""
        wanted = self.value or view.language
        if not wanted:
            return Finding("n/a", note="no language is asked for")
        count = letters(view.text)
        if count < self.min_letters:
            return Finding("n/a", note=f"{count} letters are too few to tell")
        share = script_share(view.text, wanted)
        return Finding(verdict(share >= self.min_share), share, note=f"{share:.0%} of the letters are {wanted}")
