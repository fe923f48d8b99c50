"""What a planner can decide to do, as data. The executor carries it out."""

from __future__ import annotations

from dataclasses import dataclass

from exo_operator.api.conditions import EventReason, NodeReason
from exo_operator.kube.objects import Raw


@dataclass(frozen=True, slots=True)
class Apply:
    """Server-side apply of a manifest. `exists` says whether the cache has an object of this name.

    `why` is for the log only.
    """

    manifest: Raw
    exists: bool
    why: str


@dataclass(frozen=True, slots=True)
class Delete:
    """Deletion of exactly this object. `grace` None keeps the object's own grace period. `reason`
    goes into an event, `why` into its text and the log.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    reason: EventReason
    why: str
    grace: int | None = None


@dataclass(frozen=True, slots=True)
class SetGate:
    """Setting the readiness gate of exactly this pod."""

    namespace: str
    name: str
    uid: str
    ready: bool
    reason: NodeReason
    message: str


@dataclass(frozen=True, slots=True)
class MakeSecret:
    """A Secret with a new random value, unless one of this name exists.

    `owner` is the object that it is deleted with. If None, that is the headless Service of the
    ring, which all nodes of the ring own.
    """

    namespace: str
    name: str
    service: str
    labels: dict[str, str]
    owner: Raw | None


Action = Apply | Delete | SetGate | MakeSecret


@dataclass(frozen=True, slots=True)
class Conflict:
    """A name that we need belongs to another owner. Nothing is done, and the status says so."""

    kind: str
    name: str
