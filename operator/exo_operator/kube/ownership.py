"""Who has a name that we need. The only place that decides it: planners block on it, the executor
asks it before it takes an object over, and statuses report it. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable

from exo_operator.kube.actions import Conflict
from exo_operator.kube.objects import Meta, Raw, Ref
from exo_operator.kube.store import Objects


def conflicts(
    wanted: Iterable[Ref], objects: Objects, owner_uid: str, *, orphans_are_ours: bool
) -> tuple[Conflict, ...]:
    """The names among `wanted` that objects of other owners have.

    An object that is being deleted does not count: its name becomes free. `orphans_are_ours` says
    whose an object without a controller is. For an ExoNode it is its own, since the nodes of a ring
    share a Service that has no controller; for an ExoCluster it is a user's.
    """
    found = []
    for ref in wanted:
        live = objects.get(ref)
        if live is None or Meta(live).is_deleting:
            continue
        if not _belongs_to(owner_uid, live, orphans_are_ours):
            found.append(Conflict(ref.kind, ref.name))
    return tuple(found)


def is_adoptable(live: Raw, owner_uid: str) -> bool:
    """Whether an object that no watch has shown yet is one of this owner's: it carries our label
    and has no other controller.
    """
    return Meta(live).is_managed and _belongs_to(owner_uid, live, orphans_are_ours=True)


def _belongs_to(owner_uid: str, live: Raw, orphans_are_ours: bool) -> bool:
    controller = Meta(live).controller_uid
    return orphans_are_ours if controller is None else controller == owner_uid
