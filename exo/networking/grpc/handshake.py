"""The hello over a stream of frames, for both sides. `exo.networking.hello` decides, and
`control_codec` knows the bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import grpc

from exo.networking.errors import BadMessage, PeerLost, PeerRefused
from exo.networking.grpc.wire import control_codec as wire
from exo.networking.hello import (
    NONCE_BYTES,
    Hello,
    HelloReply,
    Membership,
    proof,
    proof_holds,
    refusal,
)
from exo.topology.offer import NodeOffer


class FrameStream(Protocol):
    """What `grpc.aio` calls and server contexts have in common."""

    def read(self) -> Awaitable[Any]: ...

    def write(self, message: bytes) -> Awaitable[None]: ...


async def read_frame(stream: FrameStream) -> bytes | None:
    """The next frame; None at the end of the stream."""
    data = await stream.read()
    return None if data is grpc.aio.EOF else data


async def offer_hello(
    stream: FrameStream,
    membership: Membership,
    own: NodeOffer,
    expected_id: str | None,
    refuse_when: Callable[[str], str],
) -> NodeOffer:
    """The connecting side. Returns the peer's offer. Raises `PeerRefused`, `PeerLost` or
    `BadMessage`.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    hello = wire.HelloFrame(
        cluster=membership.cluster, protocol=membership.protocol, offer=own, nonce=nonce
    )
    await stream.write(wire.hello_frame(hello))
    theirs, given, node_id = wire.read_challenge(await _next(stream, expected_id))
    identity = _identity(own.node_id, node_id)
    if not proof_holds(given, proof(membership.secret, "server", nonce, theirs, identity)):
        raise PeerRefused(node_id, "its shared secret differs from ours")
    if expected_id is not None and node_id != expected_id:
        raise PeerRefused(expected_id, f"node {node_id!r} answers at its address")
    unwanted = refuse_when(node_id)
    if unwanted:
        raise PeerRefused(node_id, unwanted)
    await stream.write(
        wire.proof_frame(proof(membership.secret, "client", nonce, theirs, identity))
    )
    reason, offer = wire.read_welcome(await _next(stream, node_id))
    if offer is None:
        raise PeerRefused(node_id, reason)
    if offer.node_id != node_id:
        raise BadMessage("offer.node_id", f"{offer.node_id!r} after a challenge by {node_id!r}")
    problem = refusal(membership, own, membership.cluster, membership.protocol, offer)
    if problem:
        raise PeerRefused(node_id, problem)
    return offer


async def answer_hello(
    stream: FrameStream,
    membership: Membership,
    own: NodeOffer,
    decide: Callable[[Hello], HelloReply],
    identity_problem: Callable[[str], str],
) -> NodeOffer:
    """The accepting side. Returns the peer's offer. Raises `PeerLost` or `BadMessage`, and
    `PeerRefused` once the refusal has been sent to the peer.
    """
    hello = wire.read_hello(await _next(stream, None))
    peer = hello.offer.node_id
    nonce = secrets.token_bytes(NONCE_BYTES)
    identity = _identity(peer, own.node_id)
    await stream.write(
        wire.challenge_frame(
            nonce, proof(membership.secret, "server", hello.nonce, nonce, identity), own.node_id
        )
    )
    given = wire.read_proof(await _next(stream, peer))
    reason = ""
    if not proof_holds(given, proof(membership.secret, "client", hello.nonce, nonce, identity)):
        # Nothing about cluster or model to a peer that cannot prove the secret.
        reason = "the shared secret differs"
    reason = reason or identity_problem(peer)
    reason = reason or refusal(membership, own, hello.cluster, hello.protocol, hello.offer)
    if not reason:
        reply = decide(Hello(cluster=hello.cluster, protocol=hello.protocol, offer=hello.offer))
        reason, own = reply.reason, reply.offer
    await stream.write(wire.welcome_frame(reason, None if reason else own))
    if reason:
        raise PeerRefused(peer, reason)
    return hello.offer


def _identity(client_id: str, server_id: str) -> str:
    return f"{len(client_id)}:{client_id}{server_id}"


async def _next(stream: FrameStream, peer: str | None) -> bytes:
    data = await read_frame(stream)
    if data is None:
        raise PeerLost(peer or "?", "it ended the stream during the hello")
    return data
