"""Who plans together: from what a node sees to the members that see each other. Pure.

Two nodes count as connected when each reports the other. Where a link is cut between some of them
only, the members are a clique picked greedily by id, so that nodes with the same information pick
the same one; a node left out finds
that its ring never forms, and says so. A clique is never two: an epoch serves only when all its
stages adopted it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from exo.topology import ModelFootprint, NodeOffer, NodeState, NoPlan, RingPlan


def members(own_id: str, offers: Mapping[str, NodeOffer]) -> list[NodeOffer]:
    """offers: newest offer by node id, the own one among them. Sorted by id; always with the own
    one.
    """

    def linked(one: str, two: str) -> bool:
        return two in offers[one].peers and one in offers[two].peers

    chosen: list[str] = []
    for node_id in sorted(offers):
        # The own node must be in it: whoever it has no link with is out of its view anyway.
        beside_me = node_id == own_id or linked(node_id, own_id)
        if beside_me and all(linked(node_id, other) for other in chosen):
            chosen.append(node_id)
    return [offers[node_id] for node_id in chosen]


def able(view: list[NodeOffer]) -> list[NodeOffer]:
    """The view without the nodes that say of themselves that they are stuck: through those nothing
    comes.

    Nobody else's word counts for this, or a node could put another out of the ring.
    """
    return [offer for offer in view if not offer.stuck]


def without_slow(view: list[NodeOffer]) -> list[NodeOffer]:
    """The view without the nodes that all others call slow; the same view where that would leave
    fewer than two.

    With two nodes nobody can tell which one is slow: both stay.
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
    """Where a ring serves already, the view without the nodes that have yet to fetch and load their
    layers.

    They say that they are ready by being `SERVING`: nobody's stream waits for their download.
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
    """The plan of the view: without newcomers and slow nodes where the rest can hold the model.
    Raises `NoPlan`.

    Never with nodes that are stuck.
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
                continue  # better slow than not at all
    return partition(view, model)


def unconfirmed(plan: RingPlan, offers: Mapping[str, NodeOffer]) -> list[str]:
    """The stages that have not adopted this plan's epoch (as far as their newest offers tell), in
    ring order.
    """
    return [
        stage.node_id
        for stage in plan.stages
        if stage.node_id not in offers or offers[stage.node_id].epoch != plan.epoch
    ]


def leaving_nodes(offers: Mapping[str, NodeOffer]) -> set[str]:
    return {node_id for node_id, offer in offers.items() if offer.state is NodeState.LEAVING}
