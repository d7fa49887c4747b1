"""Benchmarks: programs that measure, each with `--json FILE` and `--quick`."""

import chatmill  # noqa: F401 - has gRPC's settings, which must be there before a side imports gRPC
