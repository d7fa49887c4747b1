"""What the service counts, for Prometheus. Defining them is enough: the runtime shows the default registry."""

from __future__ import annotations

from functools import cache

import prometheus_client

_LATENCY = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)

FIRST_TOKEN_SECONDS = prometheus_client.Histogram(
    "chatmill_first_token_seconds", "From the arrival of a request to its first token.", ["model"], buckets=_LATENCY
)
INTER_TOKEN_SECONDS = prometheus_client.Histogram(
    "chatmill_inter_token_seconds",
    "Mean time between two tokens of a request.",
    ["model"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
REPLY_SECONDS = prometheus_client.Histogram(
    "chatmill_reply_seconds", "From the arrival of a request to its end.", ["model"], buckets=(*_LATENCY, 120, 300)
)
TOKENS = prometheus_client.Counter(
    "chatmill_tokens",
    "Tokens, by kind: prompt (the cached ones included), cached, output, discarded.",
    ["model", "kind"],
)
FINISHED = prometheus_client.Counter("chatmill_replies", "Replies that ended, by finish reason.", ["model", "reason"])
FAILED = prometheus_client.Counter("chatmill_failed_replies", "Requests that ended in an error, by reason.", ["reason"])
MODERATED = prometheus_client.Counter(
    "chatmill_moderation_findings", "What moderation found.", ["stage", "moderator", "category", "action"]
)
MALFORMED_TOOL_CALLS = prometheus_client.Counter(
    "chatmill_malformed_tool_calls", "Tool calls that were left as text because they were not valid.", ["model"]
)
TRUNCATED_MESSAGES = prometheus_client.Counter(
    "chatmill_truncated_messages", "Messages that were dropped to fit a context.", ["model"]
)
RUNNING = prometheus_client.Gauge("chatmill_running_requests", "Requests that have a place in a batch.")
WAITING = prometheus_client.Gauge("chatmill_waiting_requests", "Requests that wait for a place.")
WAITING_TOKENS = prometheus_client.Gauge("chatmill_waiting_tokens", "Prompt tokens that wait, as estimated.")
PREFIX_LOOKUP_TOKENS = prometheus_client.Gauge(
    "chatmill_prefix_lookup_tokens", "Prompt tokens looked up in the prefix caches since start."
)
PREFIX_HIT_TOKENS = prometheus_client.Gauge(
    "chatmill_prefix_hit_tokens", "Prompt tokens found in the prefix caches since start."
)
MODEL_BYTES = prometheus_client.Gauge("chatmill_model_bytes", "Memory of loaded weights and adapters.")
REFUSED = prometheus_client.Counter("chatmill_refused_requests", "Requests that were refused, by reason.", ["reason"])
UNCOUNTED_RATES = prometheus_client.Counter(
    "chatmill_uncounted_rates", "Requests that passed uncounted because the store of the rates could not be reached."
)

# What every reply counts, by its labels, which prometheus_client takes longer to look up than to count. A metric of
# these must never be cleared: what is kept here would go on counting unseen.
finished_of, tokens_of = cache(FINISHED.labels), cache(TOKENS.labels)
reply_seconds_of = cache(REPLY_SECONDS.labels)
first_token_seconds_of, inter_token_seconds_of = cache(FIRST_TOKEN_SECONDS.labels), cache(INTER_TOKEN_SECONDS.labels)
