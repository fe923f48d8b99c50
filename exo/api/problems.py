"""Our errors as OpenAI's error JSON with the right status, by a table.

An error that is not in the table is a defect of the server: status 500, and a message that says
nothing of its inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.exceptions import HTTPException

from exo.inference import errors
from exo.lifecycle import errors as lifecycle

RETRY_SECONDS: Final = 1.0
# Clearer words for what the framework says when it has no handler.
_HTTP_MESSAGES: Final = {
    "Not Found": (
        "There is nothing at this address; the API is /v1/chat/completions, /v1/completions and"
        " /v1/models."
    ),
    "Method Not Allowed": "This address does not take this HTTP method; see the Allow header.",
}
_HTTP_CODES: Final = {404: "unknown_url", 405: "method_not_allowed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """The error that a client gets."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> dict[str, Any]:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


class TooLarge(Exception):
    """The body is longer than this server takes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body is larger than {limit} bytes")
        self.limit = limit


class TooSlow(Exception):
    """The body did not come in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"the body did not come within {seconds:g} s")


class Unauthorized(Exception):
    """No API key, or a wrong one."""


@dataclass(frozen=True, slots=True)
class _Row:
    """How one kind of error is answered. `param` is only for errors that always mean one field."""

    status: int
    code: str | None
    type: str = "invalid_request_error"
    param: str | None = None
    retry: bool = False


_UNAVAILABLE: Final = _Row(503, "unavailable", "service_unavailable_error", retry=True)
# The first row whose class fits: a subclass stands above its base.
_TABLE: Final[dict[type[BaseException], _Row]] = {
    errors.ModelNotFound: _Row(404, "model_not_found", param="model"),
    errors.ContextExceeded: _Row(400, "context_length_exceeded"),
    errors.InvalidRequest: _Row(400, None),
    Unauthorized: _Row(401, "invalid_api_key"),
    TooLarge: _Row(413, "request_too_large"),
    TooSlow: _Row(408, "request_timeout"),
    errors.Overloaded: _Row(429, "overloaded", "rate_limit_error", retry=True),
    errors.NodeDraining: _Row(503, "draining", "service_unavailable_error", retry=True),
    errors.RingUnavailable: _UNAVAILABLE,
    errors.CheckpointError: _UNAVAILABLE,
    lifecycle.ResourceError: _UNAVAILABLE,
}


def problem_of(error: BaseException, params: Mapping[str, str] | None = None) -> Problem:
    """`params`: what the endpoint calls the fields that errors from below the API name."""
    if isinstance(error, HTTPException):
        return _of_http(error)
    row = next((row for kind, row in _TABLE.items() if isinstance(error, kind)), None)
    if row is None:
        return Problem(
            status=500,
            message="The server had an error while processing the request.",
            type="server_error",
        )
    return Problem(
        status=row.status,
        message=str(error),
        type=row.type,
        param=row.param or _param(error, params or {}),
        code=row.code,
        headers=_headers(error, row),
    )


def _param(error: BaseException, params: Mapping[str, str]) -> str | None:
    named = error.field if isinstance(error, errors.InvalidRequest) else None
    return None if named is None else params.get(named, named)


def _headers(error: BaseException, row: _Row) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    if not row.retry:
        return {}
    # Whole seconds, and at least one: 0 would invite a busy loop.
    seconds = error.retry_after if isinstance(error, errors.Overloaded) else RETRY_SECONDS
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def _of_http(error: HTTPException) -> Problem:
    detail = str(error.detail)
    return Problem(
        status=error.status_code,
        message=_HTTP_MESSAGES.get(detail, detail),
        code=_HTTP_CODES.get(error.status_code),
        headers=dict(error.headers or {}),
    )
