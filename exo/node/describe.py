"""What a node shows of itself, as JSON-ready dictionaries (see `NodeView`). Pure."""

from __future__ import annotations

from typing import Any

from exo.node.served_model import ServedModel
from exo.ring.membership_view import MembershipView
from exo.ring.ring import Ring
from exo.topology import ModelFootprint, NodeOffer, RingPlan

MIB = 1024 * 1024


def topology(view: MembershipView) -> dict[str, Any]:
    known = view.topology()
    return {
        "node_id": view.own_id,
        "nodes": [
            {
                "id": offer.node_id,
                "address": _address(view, offer),
                "memory_mib": offer.memory_mib,
                "chip": f"{offer.cores} cores",
                "state": offer.state.value,
                "engine": offer.engine,
                "epoch": offer.epoch,
                "api_port": offer.api_port,
                "slow": list(offer.slow),
                "stuck": offer.stuck,
                "self": offer.node_id == view.own_id,
            }
            for offer in known.nodes()
        ],
        "edges": [
            {"from": one, "to": two, **_latency(view, one, two)} for one, two in known.edges()
        ],
    }


def _address(view: MembershipView, offer: NodeOffer) -> str:
    """What the node says of itself, else where this node reaches it. Outside Kubernetes few nodes
    say anything.
    """
    if offer.address:
        host = f"[{offer.address}]" if ":" in offer.address else offer.address
        return f"{host}:{offer.grpc_port}"
    handle = view.handles.get(offer.node_id)
    return handle.addr() if handle is not None else ""


def _latency(view: MembershipView, one: str, two: str) -> dict[str, float]:
    """Of this node's own connections; the other nodes know theirs."""
    handle = view.handles.get(two) if one == view.own_id else None
    seconds = handle.latency() if handle is not None else None
    return {} if seconds is None else {"latency_ms": round(seconds * 1000, 3)}


def ring(ring: Ring, served: ServedModel | None) -> dict[str, Any]:
    plan = ring.plan
    return {
        "formed": plan is not None,
        "reason": ring.reason,
        "model_id": served.model_id if served else "",
        "n_layers": served.n_layers if served else 0,
        "epoch": plan.epoch if plan else "",
        "standby": list(plan.standby) if plan else [],
        "stages": _stages(ring.view, plan, served.footprint if served else None) if plan else [],
    }


def _stages(
    view: MembershipView, plan: RingPlan, model: ModelFootprint | None
) -> list[dict[str, Any]]:
    """planned_mib: what the stage's layers take by plan. hop_ms: from this node's own stage to the
    next.
    """
    shown = []
    for index, stage in enumerate(plan.stages):
        entry: dict[str, Any] = {
            "node_id": stage.node_id,
            "start_layer": stage.start_layer,
            "end_layer": stage.end_layer,
        }
        if model is not None:
            entry["planned_mib"] = -(-model.range_bytes(stage.start_layer, stage.end_layer) // MIB)
        if stage.node_id == view.own_id:
            entry |= _hop(view, plan.stages[(index + 1) % len(plan.stages)].node_id)
        shown.append(entry)
    return shown


def _hop(view: MembershipView, following: str) -> dict[str, float]:
    """Half of a heartbeat's round trip to the stage that follows, which is the first one for the
    last. A ring of one has none.
    """
    handle = view.handles.get(following)
    seconds = handle.latency() if handle is not None else None
    return {} if seconds is None else {"hop_ms": round(seconds * 500, 3)}
