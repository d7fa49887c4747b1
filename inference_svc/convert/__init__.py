"""Between the contract's messages and the service's own types; the only modules that see both."""

from inference_svc.convert.admin import (
    change_from,
    entry_from,
    load_to,
    overrides_from,
    overrides_to,
    served_to,
)
from inference_svc.convert.events import complete_to, event_to
from inference_svc.convert.requests import messages_from, request_from, seconds_from

__all__ = [
    "change_from",
    "complete_to",
    "entry_from",
    "event_to",
    "load_to",
    "messages_from",
    "overrides_from",
    "overrides_to",
    "request_from",
    "seconds_from",
    "served_to",
]
