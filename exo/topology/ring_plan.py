"""`plan_ring`: from the membership view and the model to the ring plan, or the reason why there is
none. Pure.

Deterministic: every node that sees the same view computes the same plan and the same epoch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import pairwise

from exo.topology.footprint import ModelFootprint
from exo.topology.offer import NodeOffer, NodeState
from exo.topology.partition import Costs, partition
from exo.topology.plan import PlanStage, RingPlan

MIB = 1024 * 1024


class NoPlan(Exception):
    """The nodes cannot hold the model. The message does the sum; `missing_mib` is 0 where memory is
    not what is missing.
    """

    def __init__(self, message: str, *, missing_mib: int = 0) -> None:
        super().__init__(message)
        self.missing_mib = missing_mib


def plan_ring(view: Iterable[NodeOffer], model: ModelFootprint) -> RingPlan:
    """Each layer exactly once and no stage without layers. Surplus nodes stand by, and pinned
    layers are where they are pinned.

    Leaving nodes and nodes of another model are left out. Raises `NoPlan`, and `ValueError` for an
    id seen twice.
    """
    offers = tuple(sorted(view, key=lambda offer: offer.node_id))
    _check_unique(offers)
    usable = tuple(
        (offer.node_id, offer.incarnation, offer.memory_mib, offer.pinned)
        for offer in offers
        if offer.state is not NodeState.LEAVING and offer.model_id in ("", model.model_id)
    )
    return _plan(usable, model)


def epoch_of(
    model: ModelFootprint,
    stages: Sequence[PlanStage],
    standby: Sequence[str],
    incarnations: dict[str, int],
) -> str:
    """16 hex digits of SHA-256 over the plan and each member's incarnation, so that a restarted
    node makes a new epoch.
    """
    named = [
        [stage.node_id, incarnations[stage.node_id], stage.start_layer, stage.end_layer]
        for stage in stages
    ]
    waiting = [[node_id, incarnations[node_id]] for node_id in standby]
    text = json.dumps(
        [model.model_id, model.model_hash, model.n_layers, named, waiting], separators=(",", ":")
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_Node = tuple[str, int, int, tuple[int, int] | None]  # id, incarnation, MiB, pinned


@lru_cache(maxsize=64)
def _plan(nodes: tuple[_Node, ...], model: ModelFootprint) -> RingPlan:
    if not nodes:
        raise NoPlan(
            f"no node can take layers of {model.model_id!r}: all are leaving, or there is none"
        )
    pinned = _pins(nodes, model)
    free = [(node[0], node[2] * MIB) for node in nodes if node[3] is None and node[2] > 0]
    free.sort(key=lambda node: (-node[1], node[0]))
    stages = [PlanStage(node_id, *layers) for node_id, layers in pinned.items()]
    costs = Costs(model)
    gaps = _gaps(model.n_layers, sorted(pinned.values()))
    for gap, members in zip(gaps, _deal(gaps, free, costs), strict=True):
        stages += _fill(gap, members, costs, nodes, model)
    stages.sort(key=lambda stage: stage.start_layer)
    placed = {stage.node_id for stage in stages}
    standby = tuple(node[0] for node in nodes if node[0] not in placed)
    epoch = epoch_of(model, stages, standby, {node[0]: node[1] for node in nodes})
    return RingPlan(model.model_id, model.n_layers, tuple(stages), standby, epoch)


def _check_unique(offers: Sequence[NodeOffer]) -> None:
    for one, two in pairwise(offers):
        if one.node_id == two.node_id:
            raise ValueError(f"node_id: {one.node_id!r} is in the view twice")


def _pins(nodes: Sequence[_Node], model: ModelFootprint) -> dict[str, tuple[int, int]]:
    """Pinned ranges by node. Of the nodes that are pinned to one range the first by id serves, and
    the others stand by.
    """
    pins: dict[str, tuple[int, int]] = {}
    for node_id, _, memory, layers in nodes:
        if layers is None:
            continue
        if layers[1] >= model.n_layers:
            raise NoPlan(
                f"node {node_id!r} is pinned to {_named(layers)}, {model.model_id!r} has"
                f" 0-{model.n_layers - 1}"
            )
        if layers in pins.values():
            continue
        for other, theirs in pins.items():
            if layers[0] <= theirs[1] and theirs[0] <= layers[1]:
                raise NoPlan(
                    f"nodes {other!r} and {node_id!r} are pinned to overlapping layers: "
                    f"{_span(theirs)} and {_span(layers)}"
                )
        missing = _mib(model.range_bytes(*layers)) - memory
        if missing > 0:
            raise NoPlan(
                f"node {node_id!r} is pinned to {_named(layers)} of {model.model_id!r}, which"
                f" {_take(layers)} {_mib(model.range_bytes(*layers))} MiB, and offers {memory} MiB:"
                f" needs {missing} MiB more",
                missing_mib=missing,
            )
        pins[node_id] = layers
    return pins


def _gaps(n_layers: int, taken: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    gaps, at = [], 0
    for start, end in taken:
        if at < start:
            gaps.append((at, start - 1))
        at = end + 1
    if at < n_layers:
        gaps.append((at, n_layers - 1))
    return gaps


def _deal(
    gaps: Sequence[tuple[int, int]], free: Sequence[tuple[str, int]], costs: Costs
) -> list[list[tuple[str, int]]]:
    """Each free node, largest first, goes to the gap with the least memory for what it must
    hold.
    """
    dealt: list[list[tuple[str, int]]] = [[] for _ in gaps]
    for node in free if gaps else ():
        held = [sum(memory for _, memory in members) for members in dealt]
        order = [
            (held[at] / max(1, costs.of(*gap)), -costs.of(*gap), at) for at, gap in enumerate(gaps)
        ]
        dealt[min(order)[2]].append(node)
    return dealt


def _fill(
    gap: tuple[int, int],
    members: Sequence[tuple[str, int]],
    costs: Costs,
    nodes: Sequence[_Node],
    model: ModelFootprint,
) -> list[PlanStage]:
    """The gap's layers, on all of its members where possible, else on the largest of them."""
    for count in range(min(len(members), gap[1] - gap[0] + 1), 0, -1):
        chosen = list(members[:count])
        # The last stage holds the head as well. Where the smallest node cannot, the second largest
        # may.
        for order in (chosen, [chosen[0], *chosen[2:], *chosen[1:2]]):
            ranges = partition(costs, *gap, [memory for _, memory in order])
            if ranges is not None:
                return [
                    PlanStage(node_id, *layers)
                    for (node_id, _), layers in zip(order, ranges, strict=True)
                ]
    raise _shortage(gap, members, costs, nodes, model)


def _shortage(
    gap: tuple[int, int],
    members: Sequence[tuple[str, int]],
    costs: Costs,
    nodes: Sequence[_Node],
    model: ModelFootprint,
) -> NoPlan:
    needed = _mib(costs.of(*gap))
    offered = sum(memory for _, memory in members) // MIB
    whole = gap == (0, model.n_layers - 1)
    what = (
        f"{model.model_id!r} takes"
        if whole
        else f"{_named(gap)} of {model.model_id!r} {_take(gap)}"
    )
    if whole:
        shown = [(node_id, memory) for node_id, _, memory, _ in nodes]
    else:
        shown = [(node_id, memory // MIB) for node_id, memory in members]
    total = " + ".join(f"{node_id} {memory}" for node_id, memory in shown) or "none"
    offer = f"node {shown[0][0]!r} offers" if len(shown) == 1 else f"the nodes offer {total} ="
    missing = needed - offered
    if missing > 0:
        return NoPlan(
            f"{what} {needed} MiB, {offer} {offered} MiB: needs {missing} MiB more",
            missing_mib=missing,
        )
    left = _mib(_unplaced(gap, members, costs))
    return NoPlan(
        f"{what} {needed} MiB, {offer} {offered} MiB, but a layer is never split between "
        f"nodes: needs {left} MiB more on one of them",
        missing_mib=left,
    )


def _unplaced(gap: tuple[int, int], members: Sequence[tuple[str, int]], costs: Costs) -> int:
    """Bytes of the layers that remain when every node, largest first, takes as many as it can."""
    at = gap[0]
    for _, memory in members:
        end = at
        while end <= gap[1] and costs.of(at, end) <= memory:
            end += 1
        at = end
    return costs.of(at, gap[1]) if at <= gap[1] else 1


def _mib(size: int) -> int:
    return -(-size // MIB)


def _span(layers: tuple[int, int]) -> str:
    return f"{layers[0]}-{layers[1]}"


def _named(layers: tuple[int, int]) -> str:
    return f"layer {layers[0]}" if layers[0] == layers[1] else f"layers {_span(layers)}"


def _take(layers: tuple[int, int]) -> str:
    return "takes" if layers[0] == layers[1] else "take"
