"""The only modules that see both the contract and the domain."""

from eval_svc.convert.requests import (
    evaluation_id,
    report_format,
    spec_from_proto,
    spec_to_proto,
    state_name,
    target_to_proto,
)
from eval_svc.convert.results import (
    check_to_proto,
    comparison_to_proto,
    draft_to_proto,
    evaluation_to_proto,
    event_to_proto,
    gate_to_proto,
    progress_to_proto,
    score_to_proto,
    suite_to_proto,
    timestamp,
    trial_to_proto,
)

__all__ = [
    "check_to_proto",
    "comparison_to_proto",
    "draft_to_proto",
    "evaluation_id",
    "evaluation_to_proto",
    "event_to_proto",
    "gate_to_proto",
    "progress_to_proto",
    "report_format",
    "score_to_proto",
    "spec_from_proto",
    "spec_to_proto",
    "state_name",
    "suite_to_proto",
    "target_to_proto",
    "timestamp",
    "trial_to_proto",
]
