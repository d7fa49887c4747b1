"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# Before anything else that imports gRPC, so that tests in this process run on it as it is shipped.
import chatmill  # noqa: F401

# The same cases each time, and no clock in the verdict: a busy machine must not turn a right answer into a failure.
settings.register_profile("chatmill", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatmill")
