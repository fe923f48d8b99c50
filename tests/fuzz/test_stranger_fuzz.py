"""Strangers at a live node's ports: whatever they do, the node stays up, stays small and serves its
peers.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import socket

import grpc
import psutil
import pytest
from ports import free_ports
from ring_nodes import MEMBERSHIP, RecordingHandler, make_handle, make_server
from waiting import eventually

from exo.networking.grpc.handshake import offer_hello, read_frame
from exo.networking.grpc.options import CLIENT_OPTIONS, SERVICE
from exo.networking.grpc.wire import control_codec as wire
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.messages import Close
from exo.networking.udp.udp_discovery import UDPDiscovery

GROWTH_ALLOWED = 64 * 1024 * 1024


def resident() -> int:
    """Bytes, without what the allocator merely keeps."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process(os.getpid()).memory_info().rss


def channel_to(port: int):
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CLIENT_OPTIONS)


async def works(server, handler, node_id: str = "friend") -> None:
    """A peer still gets in and is heard."""
    before = len(handler.messages)
    async with make_handle(RecordingHandler(node_id), server.port) as handle:
        await handle.send(Close(sequence_id="s", epoch="e"))
        await handler.until(lambda: len(handler.messages) > before)


def junk(rng: random.Random) -> bytes:
    good = wire.hello_frame(
        wire.HelloFrame(
            cluster="test",
            protocol=1,
            offer=RecordingHandler("x").offer,
            nonce=bytes(rng.choice([0, 31, 32, 33])),
        )
    )
    shapes = [
        lambda: rng.randbytes(rng.randrange(200)),
        lambda: b"",
        lambda: good,
        lambda: good[: rng.randrange(len(good))],
        lambda: pb.Frame(proof=pb.Proof(proof=rng.randbytes(64))).SerializeToString(),
        lambda: pb.Frame(welcome=pb.Welcome(reason="x" * 9999)).SerializeToString(),
        lambda: pb.Frame(close=pb.Close(sequence_id="s", epoch="e")).SerializeToString(),
        lambda: bytes(wire.MAX_CONTROL_BYTES + 1),
    ]
    return rng.choice(shapes)()


async def annoy(channel, method: str, frames: list[bytes]) -> None:
    """Send them all, read what comes, go."""
    call = channel.stream_stream(f"/{SERVICE}/{method}")()
    try:
        async with asyncio.timeout(0.5):
            for frame in frames:
                await call.write(frame)
            while await read_frame(call) is not None:
                pass
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
        pass
    finally:
        call.cancel()


async def test_junk_before_the_hello_gets_nobody_in():
    rng = random.Random(1)
    handler = RecordingHandler("a")
    async with make_server(handler) as server, channel_to(server.port) as channel:
        for _ in range(15):
            await asyncio.gather(
                *(
                    annoy(
                        channel,
                        rng.choice(["Control", "Data"]),
                        [junk(rng) for _ in range(rng.randrange(1, 4))],
                    )
                    for _ in range(8)
                )
            )
        assert handler.messages == []
        assert server.sessions.ids() == []
        await works(server, handler)


async def test_junk_after_a_good_hello_ends_that_stream_only():
    rng = random.Random(2)
    handler = RecordingHandler("a")
    bad = [
        pb.Frame(token=pb.Token(sequence_id="", epoch="e")),
        pb.Frame(
            heartbeat=pb.Heartbeat(
                number=1, offer=pb.Offer(node_id="somebody else", state="serving")
            )
        ),
        pb.Frame(
            forward=pb.Forward(sequence_id="s", epoch="e", dtype=1, shape=[9, 9], values=b"1")
        ),
    ]
    async with (
        make_server(handler) as server,
        make_handle(RecordingHandler("friend"), server.port) as friend,
    ):
        async with channel_to(server.port) as channel:
            for number, frame in enumerate(
                [*(each.SerializeToString() for each in bad), rng.randbytes(50)]
            ):
                stranger = RecordingHandler(f"stranger-{number}")
                for method in ("Control", "Data"):
                    call = channel.stream_stream(f"/{SERVICE}/{method}")()
                    await offer_hello(call, MEMBERSHIP, stranger.offer, None, lambda _: "")
                    await call.write(frame)
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await read_frame(call)
                    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        await eventually(lambda: server.sessions.ids() == ["friend"])
        assert friend.is_connected()
        await friend.send(Close(sequence_id="s", epoch="e"))
        await handler.until(lambda: handler.messages)


async def test_those_who_connect_and_say_nothing_do_not_keep_others_out(monkeypatch):
    handler = RecordingHandler("a")
    async with make_server(handler) as server:
        silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
        async with channel_to(server.port) as channel:
            with (
                monkeypatch.context() as hurried
            ):  # for them only: a friend's hello may take its time on a busy machine
                hurried.setattr("exo.networking.grpc.grpc_server.HELLO_TIMEOUT", 0.5)
                calls = [channel.stream_stream(f"/{SERVICE}/Control")() for _ in range(100)]
                await asyncio.gather(
                    *(call.initial_metadata() for call in calls[:1]), return_exceptions=True
                )
                codes = await asyncio.gather(*(call.code() for call in calls))
            assert set(codes) <= {
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            }
            await works(server, handler)
        for sock in silent:
            sock.close()


async def test_raw_bytes_at_the_port_hurt_nobody():
    rng = random.Random(3)
    handler = RecordingHandler("a")
    async with make_server(handler) as server:
        for _ in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            start = rng.choice(
                [b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"]
            )
            writer.write(start + rng.randbytes(rng.randrange(2000)))
            writer.close()
        await works(server, handler)


async def test_large_frames_from_strangers_leave_no_memory_behind():
    handler = RecordingHandler("a")
    async with make_server(handler) as server, channel_to(server.port) as channel:
        sizes = []
        for _ in range(3):
            for _ in range(12):
                await annoy(channel, "Control", [bytes(8 * 1024 * 1024 - 1)])
            sizes.append(resident())
        assert sizes[-1] - sizes[0] < GROWTH_ALLOWED, sizes  # 200 MB were sent in between
        await works(server, handler)


async def test_a_flood_of_datagrams_makes_a_node_dial_a_bounded_number():
    handler = RecordingHandler("a")
    (port,) = free_ports(1)
    rng = random.Random(4)
    dialled: list[str] = []

    def connect(node_id, address, peer_port):
        dialled.append(node_id)
        return make_handle(handler, peer_port, node_id=node_id)

    discovery = UDPDiscovery(
        "a", lambda: 1, connect, MEMBERSHIP, port=port, interval=0.2, expiry=60.0
    )
    async with discovery:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as flood:
            for number in range(3000):
                if number % 3:
                    data = rng.randbytes(rng.randrange(1500))
                else:
                    data = (
                        b'{"exo":1,"cluster":"test","node":"n%d","port":1,"incarnation":1}' % number
                    )
                flood.sendto(data, ("127.0.0.1", port))
                if number % 100 == 0:
                    await asyncio.sleep(0)
        await asyncio.sleep(0.2)
        assert len(set(dialled)) <= 32
        assert await discovery.check_health()
