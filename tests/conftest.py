"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# The same cases each time, and no clock in the verdict: a busy machine must not turn a right answer into a failure.
settings.register_profile("chatmill", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatmill")
