"""`ids`: what ties a log line to a request, on whichever node it is written.

Apart from `logging`, because that loads structlog, and the ring's parts need none of it.
"""

from __future__ import annotations

from typing import Protocol


class OfRequest(Protocol):
    """A sequence of a request, in whatever form: at its entry node, on the wire, on a stage."""

    @property
    def request_id(self) -> str: ...

    @property
    def sequence_id(self) -> str: ...


def ids(of: OfRequest) -> dict[str, str]:
    """The fields that say which request a line is about: `log.info(..., extra=ids(sequence))`.

    Stages work for many requests in one task, so the ids go with the line and not with the task.
    """
    return {"request_id": of.request_id, "sequence_id": of.sequence_id}
