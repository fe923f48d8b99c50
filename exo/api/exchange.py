"""`Exchange`: one HTTP request and what is known of it, from the middleware to the handlers.

The middleware creates it and leaves it in the ASGI scope. Handlers add what the access log and an
error should say. The request's id is bound as a logging context variable for as long as the
exchange lasts, so every log line of the request carries it (tasks inherit the variable).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.types import Scope

_KEY: Final = "exo.exchange"
_MADE: Final = re.compile(r"req_([0-9a-f]{24})")
# What a client may choose as its id; anything else could forge log lines or headers.
_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class Exchange:
    """`facts` go to the access log; `params`: the API's names for fields that errors name (see
    `exo.api.problems`).
    """

    request_id: str
    facts: dict[str, Any] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, scope: Scope) -> Exchange:
        given = Headers(scope=scope).get("x-request-id", "")
        made = cls(given if _ACCEPTED.fullmatch(given) else f"req_{secrets.token_hex(12)}")
        scope[_KEY] = made
        return made

    @classmethod
    def of(cls, scope: Scope) -> Exchange:
        """The exchange that this scope belongs to; a fresh one outside our middleware."""
        found = scope.get(_KEY)
        return found if isinstance(found, cls) else cls("")


def answer_id(prefix: str, request_id: str) -> str:
    """The id of the answer to a request: `req_12ab…` gives `chatcmpl-12ab…`.

    A client may send the same id with many requests, but ids of answers must differ: there a
    random end follows.
    """
    if (made := _MADE.fullmatch(request_id)) is not None:
        return f"{prefix}-{made[1]}"
    return f"{prefix}-{request_id}-{secrets.token_hex(4)}"
