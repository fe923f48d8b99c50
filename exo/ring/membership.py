"""Which nodes plan together: from what a node sees to the members that see each other. Pure.

Two nodes count as connected when each reports the other. Where a connection is cut between some of
them only, the members are a clique that is picked greedily by id, so that nodes with the same
information pick the same one. A node that is left out finds that its ring never forms, and says so.
Two cliques never serve at once: an epoch is in force only when all its stages adopted it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, RingPlan


def members(own_id: str, offers: Mapping[str, NodeOffer]) -> list[NodeOffer]:
    """offers: the newest offer of each node, this one's among them, by id.

    The result is sorted by id and always has this node in it.
    """

    def linked(one: str, two: str) -> bool:
        return two in offers[one].peers and one in offers[two].peers

    chosen: list[str] = []
    for node_id in sorted(offers):
        # This node has to be in it, so a node that it has no link with cannot be.
        fits_own = node_id == own_id or linked(node_id, own_id)
        if fits_own and all(linked(node_id, other) for other in chosen):
            chosen.append(node_id)
    return [offers[node_id] for node_id in chosen]


def able(view: list[NodeOffer]) -> list[NodeOffer]:
    """The view without the nodes that say of themselves that they are stuck.

    Only a node's own word counts for this. Otherwise one node could put another out of the ring.
    """
    return [offer for offer in view if not offer.stuck]


def without_slow(view: list[NodeOffer]) -> list[NodeOffer]:
    """The view without the nodes that all others call slow; the same view where fewer than two
    would be left.

    With two nodes it cannot be told which of them is slow, so both stay.
    """
    if len(view) < 3:
        return view
    slow = {offer.node_id for offer in view if _is_slow(offer.node_id, view)}
    kept = [offer for offer in view if offer.node_id not in slow]
    return kept if len(kept) >= 2 else view


def _is_slow(node_id: str, view: Iterable[NodeOffer]) -> bool:
    others = [offer for offer in view if offer.node_id != node_id]
    return all(node_id in offer.slow for offer in others)


def without_newcomers(view: list[NodeOffer]) -> list[NodeOffer]:
    """Where a ring serves already: the view without the nodes that have yet to fetch and load
    their layers, so that no stream waits for a download. A newcomer says that it has loaded by
    becoming `SERVING`.
    """
    if not any(offer.state is NodeState.SERVING for offer in view):
        return view
    return [offer for offer in view if not is_newcomer(offer)]


def is_newcomer(offer: NodeOffer) -> bool:
    return offer.state is NodeState.JOINING and not offer.epoch


def plan_members(
    view: list[NodeOffer],
    model: ModelFootprint,
    partition: Callable[[Iterable[NodeOffer], ModelFootprint], RingPlan],
) -> RingPlan:
    """The plan of the view: without newcomers and slow nodes where the rest can hold the model, and
    never with nodes that are stuck. Raises `NoPlan`.
    """
    stuck = [f"node {offer.node_id!r} is stuck: {offer.stuck}" for offer in view if offer.stuck]
    try:
        return _plan_able(able(view), model, partition)
    except NoPlan as error:
        if stuck:
            raise NoPlan("; ".join((str(error), *stuck)), missing_mib=error.missing_mib) from None
        raise


def _plan_able(
    view: list[NodeOffer],
    model: ModelFootprint,
    partition: Callable[[Iterable[NodeOffer], ModelFootprint], RingPlan],
) -> RingPlan:
    quick = without_slow(view)
    for fewer in (without_newcomers(quick), quick):
        if len(fewer) < len(view):
            try:
                return partition(fewer, model)
            except NoPlan:
                continue  # a slow ring is better than none
    return partition(view, model)


def unconfirmed(plan: RingPlan, offers: Mapping[str, NodeOffer]) -> list[str]:
    """The stages that have not adopted this plan's epoch, as far as their newest offers tell, in
    ring order.
    """
    return [
        stage.node_id
        for stage in plan.stages
        if stage.node_id not in offers or offers[stage.node_id].epoch != plan.epoch
    ]


def leaving_nodes(offers: Mapping[str, NodeOffer]) -> set[str]:
    return {node_id for node_id, offer in offers.items() if offer.state is NodeState.LEAVING}
