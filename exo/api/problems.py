"""Our errors as OpenAI's error JSON with the right status. A table; unknown errors are 500 and tell
nothing inward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException

from exo.inference import errors
from exo.lifecycle import errors as lifecycle

RETRY_SECONDS = 1.0
# What the framework says where it knows no handler; its own words do not name the fault.
_HTTP_MESSAGES = {
    "Not Found": (
        "There is nothing at this address; the API is /v1/chat/completions, /v1/completions and"
        " /v1/models."
    ),
    "Method Not Allowed": "This address does not take this HTTP method; see the Allow header.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a client is told."""

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


def problem_of(error: BaseException) -> Problem:
    match error:
        case errors.ModelNotFound():
            return Problem(status=404, message=str(error), param="model", code="model_not_found")
        case errors.ContextExceeded():
            return Problem(
                status=400, message=str(error), param=error.field, code="context_length_exceeded"
            )
        case errors.InvalidRequest():
            return Problem(status=400, message=str(error), param=error.field)
        case Unauthorized():
            return Problem(
                status=401,
                message=str(error),
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        case TooLarge():
            return Problem(status=413, message=str(error), code="request_too_large")
        case TooSlow():
            return Problem(status=408, message=str(error), code="request_timeout")
        case errors.Overloaded():
            return _later(429, error, "rate_limit_error", "overloaded", error.retry_after)
        case errors.NodeDraining():
            return _later(503, error, "service_unavailable_error", "draining")
        case errors.RingUnavailable() | errors.CheckpointError():
            return _later(503, error, "service_unavailable_error", "unavailable")
        case lifecycle.ResourceError():
            return _later(503, error, "service_unavailable_error", "unavailable")
        case HTTPException():
            return _of_http(error)
    return Problem(
        status=500,
        message="The server had an error while processing the request.",
        type="server_error",
    )


def _later(
    status: int, error: BaseException, type_: str, code: str, seconds: float = RETRY_SECONDS
) -> Problem:
    # Retry-After is in whole seconds; at least one, for 0 would invite a busy loop.
    headers = {"Retry-After": str(max(1, math.ceil(seconds)))}
    return Problem(status=status, message=str(error), type=type_, code=code, headers=headers)


def _of_http(error: HTTPException) -> Problem:
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    message = _HTTP_MESSAGES.get(str(error.detail), str(error.detail))
    return Problem(
        status=error.status_code, message=message, code=code, headers=dict(error.headers or {})
    )
