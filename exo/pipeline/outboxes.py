"""`Outboxes`: messages to nodes by id, without waiting. To this node directly; to a peer through an
outbox and its handle.

What the handle takes at once goes there directly; the rest waits in an outbox, which one task per
peer empties in
order. It is bounded: a peer that takes nothing any more loses the messages, and whoever sent them
is told by `undelivered`.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import ClassVar, Protocol

from exo.lifecycle import AsyncResource, ResourceError, TaskPriority
from exo.networking.errors import BadMessage, PeerLost, WrongEpoch
from exo.networking.messages import Forward, Message
from exo.networking.peer_handle import PeerHandle

log = logging.getLogger(__name__)
MAX_MESSAGES = 16384
MAX_BYTES = 256 * 1024 * 1024

Deliver = Callable[[str, Message], None]


class Undelivered(Protocol):
    def __call__(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        """retryable: another attempt may succeed; False where the message itself is wrong."""
        ...


class _Outbox:
    def __init__(self, handle: PeerHandle) -> None:
        self.handle = handle
        self.messages: deque[Message] = deque()
        self.bytes = 0
        self.ready = asyncio.Event()
        self.closed = False
        self.busy = False  # its task holds a message that the handle has yet to take

    @property
    def is_idle(self) -> bool:
        return not self.messages and not self.busy

    def add(self, message: Message) -> bool:
        if len(self.messages) >= MAX_MESSAGES or self.bytes > MAX_BYTES:
            return False
        self.messages.append(message)
        self.bytes += _size(message)
        self.ready.set()
        return True

    def take(self) -> Message:
        message = self.messages.popleft()
        self.bytes -= _size(message)
        return message


class Outboxes(AsyncResource):
    """deliver(sender, message): what reaches this node itself; undelivered(node_id, message,
    reason): what got lost.
    """

    RESOURCE_TYPE: ClassVar[str] = "links"

    def __init__(self, node_id: str, deliver: Deliver, undelivered: Undelivered) -> None:
        super().__init__(resource_id=f"links-{node_id}", display_name=f"Outboxes of node {node_id}")
        self._node_id = node_id
        self._deliver = deliver
        self._undelivered = undelivered
        self._outboxes: dict[str, _Outbox] = {}

    async def _do_cleanup(self) -> None:
        self._outboxes.clear()

    @property
    def queued(self) -> int:
        """Messages that wait for their peer."""
        return sum(len(outbox.messages) for outbox in self._outboxes.values())

    def update(self, handles: list[PeerHandle]) -> None:
        """The peers connected now. What waits for one that is gone, or came back as another handle,
        is lost.
        """
        current = {handle.id(): handle for handle in handles}
        for node_id, outbox in list(self._outboxes.items()):
            if current.get(node_id) is not outbox.handle:
                self.drop(node_id, "it is not connected any more")
        for node_id, handle in current.items():
            if node_id not in self._outboxes and self.is_usable:
                outbox = self._outboxes[node_id] = _Outbox(handle)
                self._task_manager.start_task(
                    f"send {node_id}",
                    functools.partial(self._send, outbox),
                    priority=TaskPriority.HIGH,
                )

    def send(self, node_id: str, message: Message) -> None:
        if node_id == self._node_id:
            try:
                self._deliver(node_id, message)
            except WrongEpoch as error:
                self._undelivered(node_id, message, str(error))
            return
        outbox = self._outboxes.get(node_id)
        if outbox is None:
            self._undelivered(node_id, message, f"node {node_id!r} is not connected")
        elif not (outbox.is_idle and _takes(outbox.handle, message)) and not outbox.add(message):
            self._undelivered(node_id, message, f"node {node_id!r} takes no messages any more")

    def drop(self, node_id: str, reason: str) -> None:
        """The peer is lost: nothing more goes to this handle."""
        outbox = self._outboxes.pop(node_id, None)
        if outbox is None:
            return
        self._discard(node_id, outbox, reason)

    async def _send(self, outbox: _Outbox) -> None:
        node_id = outbox.handle.id()
        while not outbox.closed:
            await outbox.ready.wait()
            outbox.ready.clear()
            while outbox.messages:
                message = outbox.take()
                outbox.busy = True
                try:
                    await outbox.handle.send(message)
                except BadMessage as error:
                    # Our own mistake: a second attempt would send the same.
                    self._undelivered(node_id, message, str(error), retryable=False)
                except (PeerLost, ResourceError) as error:
                    self._undelivered(node_id, message, str(error))
                    if self._outboxes.get(node_id) is outbox:
                        del self._outboxes[node_id]
                    self._discard(node_id, outbox, str(error))
                except Exception as error:
                    log.exception("a %s for %s could not be sent", type(message).__name__, node_id)
                    self._undelivered(node_id, message, repr(error))
                finally:
                    outbox.busy = False

    def _discard(self, node_id: str, outbox: _Outbox, reason: str) -> None:
        """Its task ends: it waits for `ready`, or for a handle that is lost."""
        outbox.closed = True
        outbox.ready.set()
        while outbox.messages:
            self._undelivered(node_id, outbox.take(), reason)


def _takes(handle: PeerHandle, message: Message) -> bool:
    """Where it fails, the outbox's task meets the same failure, and reports it when the caller is
    done.
    """
    try:
        return handle.send_now(message)
    except Exception:  # noqa: BLE001
        return False


def _size(message: Message) -> int:
    return int(message.values.nbytes) if isinstance(message, Forward) else 64
