"""All that knows gRPC: servers, the one interceptor, statuses, security, telemetry, channels, health.

It knows no service and no model; services hand it their servicers, and it never imports torch.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import grpc.aio

Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
"""What a servicer's method gets beside the request."""

__all__ = ["Context"]
