"""Handshake and heartbeat frames <-> records, checked as strictly as the ring's messages."""

from __future__ import annotations

from dataclasses import dataclass

from exo.networking.errors import BadMessage
from exo.networking.grpc.wire import exo_pb2 as pb
from exo.networking.grpc.wire.checks import (
    MAX_EPOCH_LENGTH,
    MAX_ID_LENGTH,
    MAX_REASON_LENGTH,
    identifier,
    parse,
    text,
)
from exo.networking.grpc.wire.offer_codec import decode_offer, encode_offer
from exo.networking.hello import NONCE_BYTES
from exo.topology.offer import NodeOffer

# No frame of the handshake and no heartbeat comes near it. What is larger is not even parsed.
MAX_CONTROL_BYTES = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloFrame:
    cluster: str
    protocol: int
    offer: NodeOffer
    nonce: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedFrame:
    """A ring message that the peer did not take. code: the name of a gRPC status code."""

    sequence_id: str
    epoch: str
    code: str
    reason: str


def hello_frame(hello: HelloFrame) -> bytes:
    return pb.Frame(
        hello=pb.Hello(
            cluster=hello.cluster,
            protocol=hello.protocol,
            offer=encode_offer(hello.offer),
            nonce=hello.nonce,
        )
    ).SerializeToString()


def read_hello(data: bytes) -> HelloFrame:
    hello = _expect(data, "hello").hello
    return HelloFrame(
        cluster=identifier("cluster", hello.cluster),
        protocol=hello.protocol,
        offer=decode_offer(hello.offer),
        nonce=_nonce(hello.nonce),
    )


def challenge_frame(nonce: bytes, proof: bytes, node_id: str) -> bytes:
    return pb.Frame(
        challenge=pb.Challenge(nonce=nonce, proof=proof, node_id=node_id)
    ).SerializeToString()


def read_challenge(data: bytes) -> tuple[bytes, bytes, str]:
    """Nonce, proof and node id of the server."""
    challenge = _expect(data, "challenge").challenge
    return _nonce(challenge.nonce), challenge.proof[:64], identifier("node_id", challenge.node_id)


def proof_frame(proof: bytes) -> bytes:
    return pb.Frame(proof=pb.Proof(proof=proof)).SerializeToString()


def read_proof(data: bytes) -> bytes:
    return _expect(data, "proof").proof.proof[:64]


def welcome_frame(reason: str, offer: NodeOffer | None) -> bytes:
    welcome = pb.Welcome(
        reason=reason[:MAX_REASON_LENGTH], offer=None if offer is None else encode_offer(offer)
    )
    return pb.Frame(welcome=welcome).SerializeToString()


def read_welcome(data: bytes) -> tuple[str, NodeOffer | None]:
    """The reason of a refusal, or "" and the peer's offer."""
    welcome = _expect(data, "welcome").welcome
    if welcome.reason:
        return text("reason", welcome.reason, MAX_REASON_LENGTH), None
    return "", decode_offer(welcome.offer)


def heartbeat_frame(number: int, offer: NodeOffer) -> bytes:
    return pb.Frame(
        heartbeat=pb.Heartbeat(number=number, offer=encode_offer(offer))
    ).SerializeToString()


def read_heartbeat(data: bytes) -> tuple[int, NodeOffer]:
    heartbeat = _expect(data, "heartbeat").heartbeat
    return heartbeat.number, decode_offer(heartbeat.offer)


def refused_frame(refused: RefusedFrame) -> bytes:
    return pb.Frame(
        refused=pb.Refused(
            sequence_id=refused.sequence_id,
            epoch=refused.epoch,
            code=refused.code,
            reason=refused.reason[:MAX_REASON_LENGTH],
        )
    ).SerializeToString()


def read_refused(data: bytes) -> RefusedFrame:
    refused = _expect(data, "refused").refused
    return RefusedFrame(
        sequence_id=identifier("sequence_id", refused.sequence_id),
        epoch=identifier("epoch", refused.epoch, MAX_EPOCH_LENGTH),
        code=text("code", refused.code, MAX_ID_LENGTH),
        reason=text("reason", refused.reason, MAX_REASON_LENGTH),
    )


def _expect(data: bytes, kind: str) -> pb.Frame:
    frame = parse(data, MAX_CONTROL_BYTES)
    found = frame.WhichOneof("kind")
    if found != kind:
        raise BadMessage("kind", f"{found or 'nothing'} where {kind} must come")
    return frame


def _nonce(nonce: bytes) -> bytes:
    if len(nonce) != NONCE_BYTES:
        raise BadMessage("nonce", f"{len(nonce)} bytes, must be {NONCE_BYTES}")
    return nonce
