"""Messages by node id: to this node at once, to peers in order, and never lost in silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from loopback import until

from exo.networking.errors import BadMessage, PeerLost, WrongEpoch
from exo.networking.messages import Close, Message
from exo.networking.peer_handle import PeerHandle
from exo.pipeline.outboxes import MAX_MESSAGES, Outboxes
from exo.topology import NodeOffer


class Handle(PeerHandle):
    def __init__(self, node_id: str) -> None:
        super().__init__(node_id, "host", 1)
        self.sent: list[Message] = []
        self.blocked = asyncio.Event()
        self.blocked.set()
        self.reason: str | None = None

    async def _send(self, message: Message) -> None:
        await self.blocked.wait()
        if self.reason is not None:
            raise PeerLost(self.id(), self.reason)
        self.sent.append(message)

    async def _hello(self) -> NodeOffer:
        raise NotImplementedError

    def offer(self) -> NodeOffer | None:
        return None

    def is_connected(self) -> bool:
        return self.reason is None

    def lost(self) -> PeerLost | None:
        return None

    def is_slow(self) -> bool:
        return False

    def latency(self) -> float | None:
        return None

    def on_lost(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        return lambda: None


class PromptHandle(Handle):
    """Takes so many messages at once; the others have to wait their turn."""

    def __init__(self, node_id: str, room: int) -> None:
        super().__init__(node_id)
        self.room = room

    def _send_now(self, message: Message) -> bool:
        if self.reason is not None:
            raise PeerLost(self.id(), self.reason)
        if self.room == 0:
            return False
        self.room -= 1
        self.sent.append(message)
        return True


class Bench:
    def __init__(self) -> None:
        self.local: list[Message] = []
        self.undelivered: list[tuple[str, str, str]] = []
        self.hopeless: list[str] = []  # the sequences of what no second attempt would deliver
        self.epoch_error = False
        self.links = Outboxes("me", self._deliver, self._undelivered)

    def _deliver(self, sender: str, message: Message) -> None:
        if self.epoch_error:
            raise WrongEpoch("e9")
        self.local.append(message)

    def _undelivered(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        self.undelivered.append((node_id, message.sequence_id, reason))
        if not retryable:
            self.hopeless.append(message.sequence_id)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.links:
        yield made


def message(number: int = 0) -> Close:
    return Close(sequence_id=f"s{number}", epoch="e")


async def test_what_is_for_this_node_arrives_at_once(bench: Bench) -> None:
    bench.links.send("me", message())
    assert bench.local == [message()]
    bench.epoch_error = True
    bench.links.send("me", message(1))
    assert bench.undelivered == [("me", "s1", "this node serves epoch 'e9'")]


async def test_messages_to_a_peer_arrive_in_order(bench: Bench) -> None:
    peer = Handle("a")
    await peer.initialize()
    bench.links.update([peer])
    for number in range(10):
        bench.links.send("a", message(number))
    await until(lambda: len(peer.sent) == 10)
    assert peer.sent == [message(number) for number in range(10)]


async def test_what_a_peer_takes_at_once_does_not_wait_for_a_turn_of_the_loop(bench: Bench) -> None:
    peer = PromptHandle("a", room=2)
    await peer.initialize()
    bench.links.update([peer])
    bench.links.send("a", message(0))
    bench.links.send("a", message(1))
    assert peer.sent == [message(0), message(1)]
    assert bench.links.queued == 0


async def test_nothing_overtakes_what_waits_for_its_turn(bench: Bench) -> None:
    peer = PromptHandle("a", room=1)
    await peer.initialize()
    peer.blocked.clear()
    bench.links.update([peer])
    for number in range(3):
        bench.links.send("a", message(number))
    peer.room = 5
    bench.links.send("a", message(3))  # while the others are in the outbox
    await until(lambda: bench.links.queued < 3)
    bench.links.send("a", message(4))  # while the handle is being given one of them
    peer.blocked.set()
    await until(lambda: len(peer.sent) == 5)
    assert peer.sent == [message(number) for number in range(5)]


async def test_a_handle_that_has_yet_to_connect_is_given_nothing_at_once(bench: Bench) -> None:
    peer = PromptHandle("a", room=5)
    bench.links.update([peer])
    bench.links.send("a", message())
    assert peer.sent == []
    await until(lambda: peer.sent == [message()])


async def test_a_loss_noticed_while_sending_at_once_is_told_like_any_other(bench: Bench) -> None:
    peer = PromptHandle("a", room=5)
    await peer.initialize()
    bench.links.update([peer])
    peer.reason = "it was cut off"
    bench.links.send("a", message())
    assert bench.undelivered == []  # not in the midst of the caller's work
    await until(lambda: len(bench.undelivered) == 1)
    assert bench.undelivered[0][:2] == ("a", "s0")


class Refusing(PromptHandle):
    """As a transport that cannot encode the messages of `s1`."""

    def _send_now(self, message: Message) -> bool:
        self._check(message)
        return super()._send_now(message)

    async def _send(self, message: Message) -> None:
        self._check(message)
        await super()._send(message)

    def _check(self, message: Message) -> None:
        if message.sequence_id == "s1":
            raise BadMessage("values", "9 bytes, at most 8")


async def test_a_bad_message_of_our_own_is_not_to_be_tried_again_and_stops_no_other(
    bench: Bench,
) -> None:
    peer = Refusing("a", room=1)
    await peer.initialize()
    bench.links.update([peer])
    for number in range(3):
        bench.links.send("a", message(number))
    await until(lambda: len(peer.sent) == 2 and bench.undelivered)
    assert peer.sent == [message(0), message(2)]
    assert bench.undelivered == [("a", "s1", "values: 9 bytes, at most 8")]
    assert bench.hopeless == ["s1"]
    bench.links.drop("a", "gone")
    bench.links.send("a", message(3))
    assert bench.hopeless == ["s1"]


async def test_a_peer_that_is_not_connected_loses_nothing_in_silence(bench: Bench) -> None:
    bench.links.send("a", message())
    assert bench.undelivered == [("a", "s0", "node 'a' is not connected")]


@pytest.mark.parametrize("how", ["dropped", "gone", "replaced", "lost"])
async def test_what_waits_for_a_lost_peer_is_told_once_each(bench: Bench, how: str) -> None:
    peer = Handle("a")
    await peer.initialize()
    peer.blocked.clear()
    bench.links.update([peer])
    for number in range(3):
        bench.links.send("a", message(number))
    await asyncio.sleep(0)
    peer.reason = "it was cut off"
    match how:
        case "dropped":
            bench.links.drop("a", "it was cut off")
        case "gone":
            bench.links.update([])
        case "replaced":
            bench.links.update([Handle("a")])
    peer.blocked.set()
    await until(lambda: len(bench.undelivered) == 3)
    await asyncio.sleep(0)
    assert sorted(sequence for _, sequence, _ in bench.undelivered) == ["s0", "s1", "s2"]
    assert bench.links.queued == 0


async def test_a_peer_that_takes_nothing_any_more_fills_its_outbox_and_no_further(
    bench: Bench,
) -> None:
    peer = Handle("a")
    await peer.initialize()
    peer.blocked.clear()
    bench.links.update([peer])
    for number in range(MAX_MESSAGES + 5):
        bench.links.send("a", message(number))
    assert bench.links.queued == MAX_MESSAGES
    assert len(bench.undelivered) == 5
    assert "takes no messages any more" in bench.undelivered[0][2]
