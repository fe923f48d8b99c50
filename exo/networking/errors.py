"""Errors of the network parts. Knows no gRPC (see `grpc/status.py` for its codes).

ResourceUnavailable (exo.lifecycle)
+-- PeerLost              also a ConnectionError: the stream broke, or heartbeats stopped
|   +-- PeerRefused       the peer (or this node) refused the hello: `reason` names the check
|   +-- PeerStuck         unresponsive: its port answers, its messages stopped
ValueError
+-- BadMessage            `field` names what is wrong with the bytes of a message
Exception
+-- WrongEpoch            a message of another epoch; `have` is the one here
"""

from __future__ import annotations

from exo.lifecycle import ResourceState, ResourceUnavailable


class PeerLost(ResourceUnavailable, ConnectionError):
    """The peer cannot be reached any more. What was sent and not answered may not have arrived."""

    def __init__(self, peer_id: str, reason: str, *, state: ResourceState | None = None) -> None:
        super().__init__(
            f"peer {peer_id!r} is lost: {reason}", resource_id=f"peer-{peer_id}", state=state
        )
        self.peer_id = peer_id
        self.reason = reason


class PeerRefused(PeerLost):
    """The hello failed: another cluster, protocol, model or secret. It would soon fail again."""


class PeerStuck(PeerLost):
    """The peer is unresponsive: its port answers, but the process is stopped, starved or
    deadlocked. It is dialled again only now and then.
    """


class BadMessage(ValueError):
    """Bytes that are no valid message; `field` is the name of the first field that is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class WrongEpoch(Exception):
    """A message of an epoch that is not served here; `have` is the one that is ("" for none)."""

    def __init__(self, have: str) -> None:
        super().__init__(f"this node serves epoch {have!r}")
        self.have = have
