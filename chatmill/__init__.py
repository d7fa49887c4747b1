"""Chatmill: conversations go in, a tuned, served and scored chat model comes out."""

import os

__version__ = "0.1.0"

# here, because gRPC's C core reads some of them only when it is first imported, and our modules come before it.
# It tells of every lost connection on standard error, beside our own lines, and warns there whenever a program is
# started while it runs, although we never fork where gRPC runs
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Reads and writes in the thread that waits for gRPC's events, as it did for years, instead of in a pool of threads that
# then wake that one (ADR 0017). A gRPC that no longer knows one of the names says so on standard error and does without
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener,-event_engine_callback_cq")
