"""Who has a name that we need. The only place that decides it: planners block on it, the executor
asks it before it takes an object over, and statuses report it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum, auto

from exo_operator.kube.actions import Conflict
from exo_operator.kube.objects import Meta, Raw, Ref
from exo_operator.kube.store import Objects


class Claim(Enum):
    """Whose an object is, seen from an owner that needs its name."""

    # It belongs to this owner.
    OURS = auto()
    # It belongs to another owner and is being deleted: the name becomes free.
    GOING = auto()
    # It belongs to another owner and stays.
    TAKEN = auto()


def conflicts(
    wanted: Iterable[Ref], objects: Objects, owner_uid: str, *, orphans_are_ours: bool
) -> tuple[Conflict, ...]:
    """The names among `wanted` that objects of other owners have, as far as watches show them.

    `orphans_are_ours` says whose an object without a controller is. For an ExoNode it is its own,
    since the nodes of a ring share a Service that has no controller; for an ExoCluster it is a
    user's.
    """
    found = []
    for ref in wanted:
        live = objects.get(ref)
        if live is None:
            continue
        if _claim(live, _belongs_to(owner_uid, live, orphans_are_ours)) is Claim.TAKEN:
            found.append(Conflict(ref.kind, ref.name))
    return tuple(found)


def claim_unwatched(live: Raw, owner_uid: str) -> Claim:
    """Whose an object is that no watch has shown yet. Ours carries our label."""
    is_managed = Meta(live).is_managed
    return _claim(live, is_managed and _belongs_to(owner_uid, live, orphans_are_ours=True))


def _claim(live: Raw, is_ours: bool) -> Claim:
    if is_ours:
        return Claim.OURS
    return Claim.GOING if Meta(live).is_deleting else Claim.TAKEN


def _belongs_to(owner_uid: str, live: Raw, orphans_are_ours: bool) -> bool:
    controller = Meta(live).controller_uid
    return orphans_are_ours if controller is None else controller == owner_uid
