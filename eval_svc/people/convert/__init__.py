"""The only modules of the people's part that see both the contract and the domain."""

from eval_svc.people.convert.requests import (
    STATUSES,
    VOTES,
    defect_id,
    label_from_proto,
    name_of,
    session_request,
    turn_from_proto,
)
from eval_svc.people.convert.results import (
    defect_to_proto,
    export_to_proto,
    guide_to_proto,
    insight_to_proto,
    item_to_proto,
    label_to_proto,
    score_to_proto,
    session_to_proto,
    turn_to_proto,
)

__all__ = [
    "STATUSES",
    "VOTES",
    "defect_id",
    "defect_to_proto",
    "export_to_proto",
    "guide_to_proto",
    "insight_to_proto",
    "item_to_proto",
    "label_from_proto",
    "label_to_proto",
    "name_of",
    "score_to_proto",
    "session_request",
    "session_to_proto",
    "turn_from_proto",
    "turn_to_proto",
]
