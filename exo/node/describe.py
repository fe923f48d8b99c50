"""What a node shows of itself, as JSON-ready dictionaries (see `NodeView`). Pure."""

from __future__ import annotations

from typing import Any

from exo.ring.ring import Ring
from exo.topology import NodeOffer, RingPlan

MIB = 1024 * 1024


def topology(ring: Ring) -> dict[str, Any]:
    own = ring.own_offer().node_id
    known = ring.view.topology()
    return {
        "node_id": own,
        "nodes": [
            {
                "id": offer.node_id,
                "address": _address(ring, offer),
                "memory_mib": offer.memory_mib,
                "chip": f"{offer.cores} cores",
                "state": offer.state.value,
                "engine": offer.engine,
                "epoch": offer.epoch,
                "api_port": offer.api_port,
                "slow": list(offer.slow),
                "stuck": offer.stuck,
                "self": offer.node_id == own,
            }
            for offer in known.nodes()
        ],
        "edges": [
            {"from": one, "to": two, **_latency(ring, one, two)} for one, two in known.edges()
        ],
    }


def _address(ring: Ring, offer: NodeOffer) -> str:
    """What the node says of itself, else where this node reaches it: few say anything outside
    Kubernetes.
    """
    if offer.address:
        host = f"[{offer.address}]" if ":" in offer.address else offer.address
        return f"{host}:{offer.grpc_port}"
    handle = ring.view.handles.get(offer.node_id)
    return handle.addr() if handle is not None else ""


def _latency(ring: Ring, one: str, two: str) -> dict[str, float]:
    """Of this node's own connections; the others know theirs."""
    handle = ring.view.handles.get(two) if one == ring.own_offer().node_id else None
    seconds = handle.latency() if handle is not None else None
    return {} if seconds is None else {"latency_ms": round(seconds * 1000, 3)}


def ring(ring: Ring, model_id: str, n_layers: int) -> dict[str, Any]:
    plan = ring.plan
    return {
        "formed": plan is not None,
        "reason": ring.reason,
        "model_id": model_id,
        "n_layers": n_layers,
        "epoch": plan.epoch if plan else "",
        "standby": list(plan.standby) if plan else [],
        "stages": _stages(ring, plan) if plan else [],
    }


def _stages(ring: Ring, plan: RingPlan) -> list[dict[str, Any]]:
    """planned_mib: what the stage's layers take by plan. hop_ms: from this node's own stage to the
    next.
    """
    own, model = ring.own_offer().node_id, ring.footprint
    shown = []
    for index, stage in enumerate(plan.stages):
        entry: dict[str, Any] = {
            "node_id": stage.node_id,
            "start_layer": stage.start_layer,
            "end_layer": stage.end_layer,
        }
        if model is not None:
            entry["planned_mib"] = -(-model.range_bytes(stage.start_layer, stage.end_layer) // MIB)
        if stage.node_id == own:
            entry |= _hop(ring, plan.stages[(index + 1) % len(plan.stages)].node_id)
        shown.append(entry)
    return shown


def _hop(ring: Ring, following: str) -> dict[str, float]:
    """Half a heartbeat's round trip to the stage that follows, the first one for the last; none in
    a ring of one.
    """
    handle = ring.view.handles.get(following)
    seconds = handle.latency() if handle is not None else None
    return {} if seconds is None else {"hop_ms": round(seconds * 500, 3)}
