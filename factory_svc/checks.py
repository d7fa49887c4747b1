"""Whether a score can be one; what is refused here is never stored."""

from __future__ import annotations

import math
import re

from chatmill.errors import InvalidArgument
from factory_svc.entry import Evaluation

_TEXT_LENGTH = 200
_EVALUATION = re.compile(r"evaluations/[A-Za-z0-9][\w.-]{0,62}", re.ASCII)
_VERDICTS = ("better", "worse", "no clear difference", "too few scenarios")


def evaluation(score: Evaluation, field: str) -> Evaluation:
    """`score` if all of it can be true.

    Raises:
        InvalidArgument: it can't; names the field under `field`.
    """
    if not _EVALUATION.fullmatch(score.evaluation):
        raise InvalidArgument.field(f"{field}.evaluation", "must be evaluations/ID, as the evaluation service names it")
    for name in ("suite", "suite_digest"):
        text = getattr(score, name)
        if len(text) > _TEXT_LENGTH or not text.isprintable():
            raise InvalidArgument.field(f"{field}.{name}", f"must be one line of at most {_TEXT_LENGTH} characters")
    for name in ("pass_rate", "pass_rate_low", "pass_rate_high"):
        number = getattr(score, name)
        if not (math.isfinite(number) and 0 <= number <= 1):
            raise InvalidArgument.field(f"{field}.{name}", f"must be a share from 0 to 1, not {number:g}")
    if score.pass_rate_low > score.pass_rate_high:
        raise InvalidArgument.field(
            f"{field}.pass_rate_low",
            f"must be no higher than pass_rate_high: {score.pass_rate_low:g} is above {score.pass_rate_high:g}",
        )
    if score.verdict and score.verdict not in _VERDICTS:
        raise InvalidArgument.field(f"{field}.verdict", f"must be empty or one of {', '.join(_VERDICTS)}")
    return score
