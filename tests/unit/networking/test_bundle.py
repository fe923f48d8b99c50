"""Messages that wait together travel together."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.codec import bundle, decode_all, encode
from exo.networking.messages import Close, Token
from exo.networking.send_queue import SendQueue

MESSAGES = [Token(sequence_id=f"s{i}", epoch="e", position=i, token=i) for i in range(5)]


def test_a_bundle_gives_the_messages_back_in_order() -> None:
    assert decode_all(bundle([encode(message) for message in MESSAGES])) == MESSAGES


def test_a_bundle_of_one_is_the_message_itself() -> None:
    (data,) = [encode(Close(sequence_id="s", epoch="e"))]
    assert bundle([data]) == data
    assert decode_all(data) == [Close(sequence_id="s", epoch="e")]


def test_a_bundle_in_a_bundle_is_refused() -> None:
    inner = bundle([encode(message) for message in MESSAGES])
    with pytest.raises(BadMessage, match="bundle is no ring message"):
        decode_all(pb.Frame(bundle=pb.Bundle(frames=[inner])).SerializeToString())


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_any_bytes_in_a_bundle_are_messages_or_refused(frames: list[bytes]) -> None:
    try:
        decode_all(pb.Frame(bundle=pb.Bundle(frames=frames)).SerializeToString())
    except BadMessage:
        return


async def test_what_waits_together_is_taken_together_up_to_a_size() -> None:
    queue: SendQueue[bytes] = SendQueue(len)
    for data in (b"aa", b"bb", b"cc", b"dddddddd", b"e"):
        await queue.put(data)
    assert await queue.get_together(max_items=9, max_bytes=6) == [b"aa", b"bb", b"cc"]
    assert await queue.get_together(max_items=9, max_bytes=6) == [b"dddddddd"]
    assert await queue.get_together(max_items=9, max_bytes=6) == [b"e"]
    waiting = asyncio.create_task(queue.get_together(max_items=9, max_bytes=6))
    await asyncio.sleep(0)
    await queue.put(b"f")
    assert await waiting == [b"f"]


async def test_no_more_messages_are_taken_together_than_a_bundle_may_hold() -> None:
    queue: SendQueue[bytes] = SendQueue(len)
    for _ in range(5):
        assert queue.put_now(b"a")
    assert await queue.get_together(max_items=3, max_bytes=100) == [b"a"] * 3
    assert await queue.get_together(max_items=3, max_bytes=100) == [b"a"] * 2
    assert len(queue) == 0
