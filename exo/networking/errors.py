"""Errors of the network parts, by whose fault they are. Knows no gRPC (see `grpc/status.py` for its
codes).

ResourceUnavailable (exo.lifecycle)
+-- PeerLost              also a ConnectionError: the stream broke, or heartbeats stopped
|   +-- PeerRefused       the peer (or we) said no to the hello: `reason` says which check failed
ValueError
+-- BadMessage            `field` names what is wrong with bytes that somebody sent
Exception
+-- WrongEpoch            a message of another epoch; `have` is the one here
"""

from __future__ import annotations

from exo.lifecycle import ResourceState, ResourceUnavailable


class PeerLost(ResourceUnavailable, ConnectionError):
    """The peer cannot be reached any more: what was sent and not answered may not have arrived."""

    def __init__(self, peer_id: str, reason: str, *, state: ResourceState | None = None) -> None:
        super().__init__(
            f"peer {peer_id!r} is lost: {reason}", resource_id=f"peer-{peer_id}", state=state
        )
        self.peer_id = peer_id
        self.reason = reason


class PeerRefused(PeerLost):
    """The hello failed: another cluster, protocol, model or secret.
    Trying again soon is of no use.
    """


class PeerStuck(PeerLost):
    """Not gone, but of no use: stopped, starved or deadlocked. Dialled again only now and then."""


class BadMessage(ValueError):
    """Bytes that are no message of ours; `field` is the name of the first field that is wrong."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class WrongEpoch(Exception):
    """A message of an epoch that is not served here; `have` is the one that is ("" for none)."""

    def __init__(self, have: str) -> None:
        super().__init__(f"this node serves epoch {have!r}")
        self.have = have
