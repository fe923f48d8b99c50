"""The hello between two nodes: its records, the checks that both sides make, and the proof of the
shared secret. Pure.

The handshake of every stream: client `Hello` -> server challenge (nonce and the server's proof) ->
client proof -> server welcome (its offer) or refusal. Without a secret the proofs are empty and
prove nothing.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from exo.topology.offer import NodeOffer

PROTOCOL_VERSION = 1
NONCE_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """What a node must have in common with its peers. secret: b"" means that none is needed."""

    cluster: str
    secret: bytes = field(default=b"", repr=False)
    protocol: int = PROTOCOL_VERSION

    def __post_init__(self) -> None:
        if not 1 <= len(self.cluster) <= 128:
            raise ValueError(f"cluster: {len(self.cluster)} characters, must be 1 to 128")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What the connecting node says of itself. Its cluster, protocol, secret and identity have been
    checked.
    """

    cluster: str
    protocol: int
    offer: NodeOffer


@dataclass(frozen=True, slots=True, kw_only=True)
class HelloReply:
    """reason: "" where the peer is accepted; else it is sent to the peer, and both sides log it."""

    offer: NodeOffer
    reason: str = ""


def refusal(
    membership: Membership, own: NodeOffer, cluster: str, protocol: int, peer: NodeOffer
) -> str:
    """Why `own` must not talk to `peer`; "" where it may. A model hash that is not known yet ("")
    matches any.
    """
    if protocol != membership.protocol:
        return (
            f"protocol version {protocol}, this node speaks {membership.protocol}: run the same"
            " release on both"
        )
    if cluster != membership.cluster:
        return f"cluster {cluster!r}, this node belongs to {membership.cluster!r}"
    if peer.node_id == own.node_id:
        if peer.incarnation == own.incarnation:
            return "self"
        return (
            f"node id {own.node_id!r} is taken by another process: give each node its own --node-id"
        )
    if peer.model_id != own.model_id:
        return f"model {peer.model_id!r}, this node serves {own.model_id!r}"
    if peer.model_hash and own.model_hash and peer.model_hash != own.model_hash:
        return (
            f"model {own.model_id!r} has content {peer.model_hash[:12]} there and"
            f" {own.model_hash[:12]} here"
        )
    return ""


def proof(
    secret: bytes, role: str, client_nonce: bytes, server_nonce: bytes, identity: str
) -> bytes:
    """HMAC-SHA256 over both nonces and the ids. With `role` in it, the proof of one side cannot be
    sent back as that of the other.
    """
    if not secret:
        return b""
    parts = (role.encode(), client_nonce, server_nonce, identity.encode())
    framed = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return hmac.new(secret, framed, hashlib.sha256).digest()


def proof_holds(given: bytes, expected: bytes) -> bool:
    """In constant time."""
    return hmac.compare_digest(given, expected)
