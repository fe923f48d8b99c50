"""`Outboxes`: sends messages to peers by node id, without waiting.

There is one queue to each peer, and its peer handle owns it. What waits there is bounded: a peer
that is too far behind is sent nothing more. A message that cannot be sent, or that was still queued
when its peer was lost, comes back to its sender through `undelivered`.
"""

from __future__ import annotations

import asyncio
import logging
from typing import ClassVar, Protocol

from exo.lifecycle import AsyncResource, ResourceError
from exo.networking.errors import BadMessage
from exo.networking.messages import Message
from exo.networking.peer_handle import PeerHandle

log = logging.getLogger(__name__)


class Undelivered(Protocol):
    def __call__(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        """retryable: another attempt may succeed; False where the message itself is wrong."""
        ...


class Outboxes(AsyncResource):
    # The name under which metrics and the dashboard have always shown it.
    RESOURCE_TYPE: ClassVar[str] = "links"

    def __init__(self, node_id: str, undelivered: Undelivered) -> None:
        super().__init__(resource_id=f"links-{node_id}", display_name=f"Outboxes of node {node_id}")
        self._undelivered = undelivered
        self._handles: dict[str, PeerHandle] = {}

    async def _do_cleanup(self) -> None:
        self._handles.clear()

    @property
    def queued(self) -> int:
        """Messages that wait for their peer."""
        return sum(handle.queued() for handle in self._handles.values())

    def update(self, handles: list[PeerHandle]) -> None:
        """These peers are connected now. What is queued for a peer that is gone, or that came back
        with another handle, is lost.
        """
        current = {handle.id(): handle for handle in handles}
        for node_id, handle in list(self._handles.items()):
            if current.get(node_id) is not handle:
                self.drop(node_id, "it is not connected any more")
        if self.is_usable:
            self._handles = current

    def send(self, node_id: str, message: Message) -> None:
        handle = self._handles.get(node_id)
        if handle is None:
            self._undelivered(node_id, message, f"node {node_id!r} is not connected")
            return
        try:
            taken = handle.send_now(message)
        except BadMessage as error:
            # Our own mistake: a second attempt would send the same.
            self._report_later(node_id, message, str(error), retryable=False)
        except ResourceError as error:
            self._report_later(node_id, message, str(error))
        except Exception as error:
            kind, of = type(message).__name__, {"sequence_id": message.sequence_id}
            log.exception("a %s for %s could not be sent", kind, node_id, extra=of)
            self._report_later(node_id, message, repr(error))
        else:
            if not taken:
                self._undelivered(node_id, message, f"node {node_id!r} takes no messages any more")

    def drop(self, node_id: str, reason: str) -> None:
        """The peer is lost: nothing more goes through its handle."""
        handle = self._handles.pop(node_id, None)
        if handle is None:
            return
        for message in handle.take_unsent():
            self._undelivered(node_id, message, reason)

    def _report_later(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        """When the caller is done, as if the message had waited in the queue. The caller may be in
        the middle of a batch, and the loss of a peer can end many of its sequences.
        """

        def report() -> None:
            self._undelivered(node_id, message, reason, retryable=retryable)

        asyncio.get_running_loop().call_soon(report)
