"""Two nodes over real sockets: hello, messages, back-pressure, refusals, loss."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import numpy as np
import pytest
import pytest_asyncio
from ring_nodes import RecordingHandler, make_handle, make_server
from waiting import settled

from exo.lifecycle import ResourceClosed
from exo.networking.errors import BadMessage, PeerLost, WrongEpoch
from exo.networking.messages import Failed, Forward, Token


def token(position: int, sequence: str = "s") -> Token:
    return Token(sequence_id=sequence, epoch="e", position=position, token=1)


@pytest_asyncio.fixture
async def pair():
    """Handlers of nodes a and b, b's server, and a's handle to b."""
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(make_server(b))
        handle = await stack.enter_async_context(make_handle(a, server.port))
        yield a, b, server, handle


async def test_after_the_hello_each_knows_the_other(pair):
    a, b, server, handle = pair
    assert handle.id() == "b"
    assert handle.is_connected()
    assert a.offers["b"] == b.offer
    assert b.offers["a"] == a.offer
    assert server.sessions.ids() == ["a"]
    assert handle.offer() == b.offer


async def test_messages_arrive_in_order(pair):
    _a, b, _, handle = pair
    sent = [token(position) for position in range(500)]
    for message in sent:
        await handle.send(message)
    await b.until(lambda: len(b.messages) == len(sent))
    assert [message for _, message in b.messages] == sent
    assert {peer for peer, _ in b.messages} == {"a"}


async def test_a_large_tensor_arrives_bit_for_bit(pair):
    _, b, _, handle = pair
    values = np.random.default_rng(1).standard_normal((1024, 1024)).astype(np.float32)
    await handle.send(Forward(sequence_id="s", epoch="e", position=0, values=values, sample=True))
    await b.until(lambda: b.messages)
    assert b.messages[0][1].values.tobytes() == values.tobytes()


MIB = 1024 * 1024


@pytest_asyncio.fixture
async def narrow():
    """b's handler, its server and a's handle to b, with room for 32 MiB in its queue."""
    a, b = RecordingHandler("a"), RecordingHandler("b")
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(make_server(b))
        handle = make_handle(a, server.port, queue_bytes=32 * MIB)
        yield b, server, await stack.enter_async_context(handle)


async def test_a_peer_that_is_behind_makes_the_sender_wait_and_is_not_lost(narrow):
    b, _, handle = narrow
    gate = asyncio.Event()

    async def wait(*_):
        await gate.wait()

    b.answer = wait
    big = Forward(
        sequence_id="s",
        epoch="e",
        position=0,
        values=np.zeros((1024, 1024), np.float32),
        sample=False,
    )
    sent = 0
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            while True:
                await handle.send(big)
                sent += 1
    assert sent < 30  # 32 MiB queued here, a few more on the way
    assert handle.is_connected()
    assert (await handle.hello()).node_id == "b"
    gate.set()
    await b.until(lambda: len(b.messages) == sent)


VALUES = np.random.default_rng(2).standard_normal((1024, 1024)).astype(np.float32)


async def fill(b, handle) -> tuple[asyncio.Event, int]:
    """Send tensors until nothing moves any more. Returns what lets b go on, and how many were
    taken.
    """
    gate, taken = asyncio.Event(), 0

    async def wait(*_):
        await gate.wait()

    b.answer = wait

    def put_in() -> int:
        nonlocal taken
        while handle.send_now(
            Forward(sequence_id=f"s{taken}", epoch="e", position=0, values=VALUES, sample=False)
        ):
            taken += 1
        return taken

    # What the transport takes on makes room for as much again, so once is not enough.
    await settled(put_in)
    return gate, taken


async def test_what_a_peer_that_is_behind_has_no_room_for_is_not_taken_and_what_waits_comes_back(
    narrow,
):
    b, _, handle = narrow
    gate, taken = await fill(b, handle)
    # Seven tensors of 4 MiB and their heads are just below the limit.
    assert 7 < taken < 30
    assert handle.queued() == 7
    unsent = handle.take_unsent()
    assert [message.sequence_id for message in unsent] == [f"s{taken - 7 + i}" for i in range(7)]
    assert all(np.array_equal(message.values, VALUES) for message in unsent)
    assert handle.queued() == 0
    gate.set()
    await b.until(lambda: len(b.messages) == taken - 7)


async def test_what_was_queued_when_the_peer_was_lost_comes_back_once(narrow):
    b, server, handle = narrow
    _, taken = await fill(b, handle)
    assert handle.queued() == 7
    await server.cleanup()
    async with asyncio.timeout(10):
        lost = asyncio.Event()
        handle.on_lost(lambda *_: lost.set())
        if handle.lost() is None:
            await lost.wait()
    unsent = [message.sequence_id for message in handle.take_unsent()]
    # What the transport was being given at that moment may have arrived: it is not among them.
    assert len(unsent) in (6, 7)
    assert unsent == [f"s{number}" for number in range(taken - len(unsent), taken)]
    assert handle.take_unsent() == []
    with pytest.raises(PeerLost):
        handle.send_now(token(3))


async def test_the_newest_offer_comes_with_the_heartbeats_and_at_once_when_asked(pair):
    a, b, _, handle = pair
    b.offer = type(b.offer)(
        node_id="b", incarnation=b.offer.incarnation, model_id="m", memory_mib=77
    )
    assert (await handle.hello()).memory_mib == 77
    a.offer = type(a.offer)(
        node_id="a", incarnation=a.offer.incarnation, model_id="m", memory_mib=55
    )
    await b.until(lambda: b.offers["a"].memory_mib == 55)
    assert handle.latency() < 5


async def test_a_message_of_another_epoch_comes_back_as_failed_and_the_stream_goes_on(pair):
    a, b, _, handle = pair

    async def refuse(_, message):
        if message.position == 0:
            raise WrongEpoch("newer")

    b.answer = refuse
    await handle.send(token(0, "late"))
    await handle.send(token(1, "fine"))
    await b.until(lambda: b.messages)
    await a.until(lambda: a.messages)
    peer, failed = a.messages[0]
    assert peer == "b"
    assert failed == Failed(
        sequence_id="late",
        epoch="e",
        node="b",
        reason="FAILED_PRECONDITION: this node serves epoch 'newer'",
        retryable=True,
    )
    assert b.messages[0][1].sequence_id == "fine"


async def test_a_handler_that_fails_costs_one_message_only(pair, caplog):
    a, b, _, handle = pair

    async def fail(_, message):
        if message.position == 0:
            raise KeyError("bug")

    b.answer = fail
    await handle.send(token(0))
    await handle.send(token(1))
    await b.until(lambda: b.messages)
    await a.until(lambda: a.messages)
    assert a.messages[0][1].reason.startswith("INTERNAL")
    assert not a.messages[0][1].retryable
    assert handle.is_connected()


async def test_a_server_that_goes_is_noticed_at_once_and_stays_lost(pair):
    a, _b, server, handle = pair
    told = []
    handle.on_lost(lambda peer, reason: told.append(peer))
    await server.cleanup()
    await a.until(lambda: a.lost, timeout=1.0)
    assert told == ["b"]
    assert a.lost[0][0] == "b"
    assert not handle.is_connected()
    with pytest.raises(PeerLost, match="'b' is lost"):
        await handle.send(token(0))
    with pytest.raises(PeerLost):
        await handle.hello()
    assert not await handle.check_health()
    assert isinstance(handle.lost(), ConnectionError)


async def test_a_handle_that_is_closed_ends_the_session_at_the_server(pair):
    a, b, server, handle = pair
    await handle.cleanup()
    await b.until(lambda: b.lost)
    assert server.sessions.ids() == []
    assert a.lost == []  # closing is not losing
    with pytest.raises(ResourceClosed):
        await handle.send(token(0))


async def test_a_closed_handle_can_begin_a_new_life(pair):
    _, b, _, handle = pair
    await handle.cleanup()
    await handle.initialize()
    await handle.send(token(0))
    await b.until(lambda: b.messages)


async def test_a_peer_that_connects_anew_replaces_its_earlier_streams(pair):
    a, b, server, _handle = pair
    again = make_handle(a, server.port)
    async with again:
        await a.until(lambda: a.lost)
        assert a.lost == [("b", "ABORTED: it connected again")]
        assert server.sessions.ids() == ["a"]
        await again.send(token(0))
        await b.until(lambda: b.messages)


async def test_what_cannot_travel_is_refused_before_it_is_queued(pair):
    handle = pair[3]
    with pytest.raises(BadMessage, match=r"^values: "):
        await handle.send(
            Forward(
                sequence_id="s",
                epoch="e",
                position=0,
                values=np.zeros((2048, 2048), np.float32),
                sample=True,
            )
        )
    assert handle.is_connected()
