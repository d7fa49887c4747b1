"""Benchmarks: programs that measure, each with `--json FILE` and `--quick`."""
