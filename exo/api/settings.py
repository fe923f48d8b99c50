"""`ApiSettings`: what the API server is built from, checked once. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiSettings:
    """Raises `ValueError` naming the field.

    api_key: when set, `/v1` and `/api/v1` ask for it; health, metrics and the pages do not.
    body_seconds: the time in which a request's body must arrive.
    drain_seconds: the time that running answers get to finish once the server stops.
    """

    host: str = "0.0.0.0"
    port: int = 0
    api_key: str | None = field(default=None, repr=False)
    max_body_bytes: int = 4 * 2**20
    body_seconds: float = 60.0
    drain_seconds: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: {self.port} is not a port (0 to 65535)")
        if self.max_body_bytes < 1:
            raise ValueError(f"max_body_bytes: {self.max_body_bytes} must be at least 1")
        if self.drain_seconds < 0:
            raise ValueError(f"drain_seconds: {self.drain_seconds} must be 0 or more seconds")
