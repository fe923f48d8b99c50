"""Messages to peers by node id: in order, bounded, and never lost without a word to the sender."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from loopback import until

from exo.networking.errors import BadMessage, PeerLost
from exo.networking.messages import Close, Message
from exo.networking.peer_handle import PeerHandle
from exo.networking.send_queue import MAX_ITEMS, SendQueue
from exo.pipeline.outboxes import Outboxes
from exo.topology import NodeOffer


class Handle(PeerHandle):
    """behind: what is sent waits in the queue until `open` is set."""

    def __init__(self, node_id: str, *, behind: bool = False) -> None:
        super().__init__(node_id, "host", 1)
        self.sent: list[Message] = []
        self.open = asyncio.Event()
        if not behind:
            self.open.set()
        self._queue: SendQueue[Message] = SendQueue(lambda _: 64)
        self._unsent: list[Message] = []
        self._lost: PeerLost | None = None

    async def _do_initialize(self) -> None:
        self._task_manager.start_task("write", self._write)

    async def _write(self) -> None:
        while self._lost is None:
            await self.open.wait()
            self.sent.append(await self._queue.get())

    def lose(self, reason: str) -> None:
        self._lost = PeerLost(self.id(), reason)
        self._unsent = self._queue.clear()

    async def _send(self, message: Message) -> None:
        await self._queue.put(message)

    def _send_now(self, message: Message) -> bool:
        return self._queue.put_now(message)

    def queued(self) -> int:
        return len(self._queue)

    def take_unsent(self) -> list[Message]:
        unsent, self._unsent = [*self._unsent, *self._queue.clear()], []
        return unsent

    async def _hello(self) -> NodeOffer:
        raise NotImplementedError

    def offer(self) -> NodeOffer | None:
        return None

    def is_connected(self) -> bool:
        return self._lost is None

    def lost(self) -> PeerLost | None:
        return self._lost

    def is_slow(self) -> bool:
        return False

    def latency(self) -> float | None:
        return None

    def on_lost(self, callback: Callable[[str, str], None]) -> Callable[[], None]:
        return lambda: None


class Bench:
    def __init__(self) -> None:
        self.undelivered: list[tuple[str, str, str]] = []
        self.hopeless: list[str] = []  # the sequences of what no second attempt would deliver
        self.outboxes = Outboxes("me", self._undelivered)

    def _undelivered(
        self, node_id: str, message: Message, reason: str, *, retryable: bool = True
    ) -> None:
        self.undelivered.append((node_id, message.sequence_id, reason))
        if not retryable:
            self.hopeless.append(message.sequence_id)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench()
    async with made.outboxes:
        yield made


def message(number: int = 0) -> Close:
    return Close(sequence_id=f"s{number}", epoch="e")


async def test_messages_to_a_peer_arrive_in_order(bench: Bench) -> None:
    async with Handle("a") as peer:
        bench.outboxes.update([peer])
        for number in range(10):
            bench.outboxes.send("a", message(number))
        await until(lambda: len(peer.sent) == 10)
        assert peer.sent == [message(number) for number in range(10)]


async def test_what_waits_is_counted_and_goes_once_the_peer_has_caught_up(bench: Bench) -> None:
    async with Handle("a", behind=True) as peer:
        bench.outboxes.update([peer])
        for number in range(4):
            bench.outboxes.send("a", message(number))
        assert bench.outboxes.queued == 4
        peer.open.set()
        await until(lambda: len(peer.sent) == 4)
        assert bench.outboxes.queued == 0
        assert bench.undelivered == []


async def test_a_handle_that_has_yet_to_connect_is_given_nothing(bench: Bench) -> None:
    peer = Handle("a")
    bench.outboxes.update([peer])
    bench.outboxes.send("a", message())
    await until(lambda: bench.undelivered)
    assert bench.undelivered == [("a", "s0", "peer 'a' is not connected")]
    assert peer.queued() == 0


async def test_a_loss_noticed_while_sending_is_told_when_the_caller_is_done(bench: Bench) -> None:
    async with Handle("a") as peer:
        bench.outboxes.update([peer])
        peer.lose("it was cut off")
        bench.outboxes.send("a", message())
        assert bench.undelivered == []  # not in the midst of the caller's work
        await until(lambda: len(bench.undelivered) == 1)
        assert bench.undelivered[0][:2] == ("a", "s0")
        assert bench.hopeless == []


class Refusing(Handle):
    """As a transport that cannot encode the messages of `s1`."""

    def _send_now(self, message: Message) -> bool:
        if message.sequence_id == "s1":
            raise BadMessage("values", "9 bytes, at most 8")
        return super()._send_now(message)


async def test_a_bad_message_of_our_own_is_not_to_be_tried_again_and_stops_no_other(
    bench: Bench,
) -> None:
    async with Refusing("a") as peer:
        bench.outboxes.update([peer])
        for number in range(3):
            bench.outboxes.send("a", message(number))
        await until(lambda: len(peer.sent) == 2 and bench.undelivered)
        assert peer.sent == [message(0), message(2)]
        assert bench.undelivered == [("a", "s1", "values: 9 bytes, at most 8")]
        assert bench.hopeless == ["s1"]
        bench.outboxes.drop("a", "gone")
        bench.outboxes.send("a", message(3))
        assert bench.hopeless == ["s1"]


async def test_a_peer_that_is_not_connected_loses_nothing_in_silence(bench: Bench) -> None:
    bench.outboxes.send("a", message())
    assert bench.undelivered == [("a", "s0", "node 'a' is not connected")]


@pytest.mark.parametrize("how", ["dropped", "gone", "replaced", "lost"])
async def test_what_waits_for_a_lost_peer_is_told_once_each(bench: Bench, how: str) -> None:
    async with Handle("a", behind=True) as peer:
        bench.outboxes.update([peer])
        for number in range(3):
            bench.outboxes.send("a", message(number))
        await asyncio.sleep(0)
        match how:
            case "dropped":
                bench.outboxes.drop("a", "it was cut off")
            case "gone":
                bench.outboxes.update([])
            case "replaced":
                bench.outboxes.update([Handle("a")])
            case "lost":
                peer.lose("it was cut off")
                bench.outboxes.update([])
        peer.open.set()
        await asyncio.sleep(0)
        assert [sequence for _, sequence, _ in bench.undelivered] == ["s0", "s1", "s2"]
        assert peer.sent == []
        assert bench.outboxes.queued == 0


async def test_a_peer_that_takes_nothing_any_more_fills_its_outbox_and_no_further(
    bench: Bench,
) -> None:
    async with Handle("a", behind=True) as peer:
        bench.outboxes.update([peer])
        for number in range(MAX_ITEMS + 5):
            bench.outboxes.send("a", message(number))
        assert bench.outboxes.queued == MAX_ITEMS
        assert len(bench.undelivered) == 5
        assert "takes no messages any more" in bench.undelivered[0][2]


async def test_a_closed_outbox_takes_nothing(bench: Bench) -> None:
    async with Handle("a") as peer:
        bench.outboxes.update([peer])
        await bench.outboxes.cleanup()
        bench.outboxes.update([peer])
        bench.outboxes.send("a", message())
        assert bench.undelivered == [("a", "s0", "node 'a' is not connected")]
