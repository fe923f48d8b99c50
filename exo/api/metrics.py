"""Prometheus metrics of the HTTP side, in one place. Labels are bounded: routes are templates, not
paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from prometheus_client import REGISTRY, Counter, Gauge, Histogram

from exo.contract import METRIC_TIME_TO_FIRST_TOKEN, METRIC_TOKENS_PER_SECOND

REQUESTS: Final = Counter(
    "exo_api_requests_total",
    "HTTP requests answered.",
    ("route", "method", "status"),
    registry=REGISTRY,
)
SECONDS: Final = Histogram(
    "exo_api_request_seconds",
    "Time from a request's arrival to the end of its answer.",
    ("route",),
    buckets=(0.002, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300),
    registry=REGISTRY,
)
IN_FLIGHT: Final = Gauge(
    "exo_api_requests_in_flight", "HTTP requests being answered.", ("route",), registry=REGISTRY
)
FIRST_TOKEN: Final = Histogram(
    METRIC_TIME_TO_FIRST_TOKEN,
    "Time from a completion's start to its first token.",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REGISTRY,
)
TOKEN_RATE: Final = Histogram(
    METRIC_TOKENS_PER_SECOND,
    "Tokens per second of a completion after its first token, over all its choices.",
    buckets=(1, 2, 5, 10, 20, 35, 50, 75, 100, 150, 250, 500, 1000),
    registry=REGISTRY,
)
TOKENS: Final = Counter(
    "exo_api_tokens_total", "Tokens of completions.", ("kind",), registry=REGISTRY
)
DISCONNECTS: Final = Counter(
    "exo_api_disconnects_total",
    "Completions whose client went away before the end.",
    registry=REGISTRY,
)


@dataclass(slots=True)
class Totals:
    """What one API server has done so far, for its dashboard. The page works out the rates."""

    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
