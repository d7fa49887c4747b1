"""All that knows gRPC: servers, the one interceptor, statuses, security, telemetry, channels, health.

It knows no service and no model; services hand it their servicers, and it never imports torch.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

# before grpc starts: its C core tells of every lost connection on standard error, beside our own lines, and warns there
# whenever a program is started while it runs, although we only ever start programs anew and never fork
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# read and written by the thread that waits for gRPC's events, as it was until 1.7x, instead of by threads of a pool that
# then wake that one: a third less CPU and time for a call of Python's (ADR 0017). A gRPC that no longer knows one of the
# names says so on standard error and does without
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener,-event_engine_callback_cq")

import grpc.aio

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
"""What a servicer's method gets beside the request."""

__all__ = ["Context"]
