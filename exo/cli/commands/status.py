"""`exo status`: a running node's ring, layer map, resources and requests, as tables or JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from exo.cli.client import ask, connect
from exo.cli.console import wide_console

_COLOURS = ("blue", "cyan", "magenta", "yellow", "green", "red")
_STATES = {
    "ready": "green",
    "degraded": "yellow",
    "initializing": "yellow",
    "closing": "yellow",
    "error": "red",
}
_VIEWS = ("resources", "topology", "ring", "requests")


def show(url: str, api_key: str | None, *, as_json: bool) -> int:
    """0 when the node is ready, else 1."""
    with connect(url, api_key) as client:
        views = {name: ask(client, f"/api/v1/{name}") for name in _VIEWS}
    ready = views["resources"]["ready"]["status"] == "ok"
    if as_json:
        sys.stdout.write(json.dumps(views, indent=2) + "\n")
    else:
        wide_console().print(render(views))
    return 0 if ready else 1


def render(views: dict[str, Any]) -> RenderableType:
    resources, topology, ring = (views[name] for name in ("resources", "topology", "ring"))
    parts: list[RenderableType] = [_head(resources, ring), ""]
    if ring.get("stages"):
        parts += [layer_map(ring), ""]
    parts += [_nodes(topology, ring), "", _resources(resources["resources"])]
    if views["requests"]["requests"]:
        parts += ["", _requests(views["requests"]["requests"])]
    return Group(*parts)


def _head(resources: dict[str, Any], ring: dict[str, Any]) -> Text:
    ready = resources["ready"]
    text = Text.assemble((resources["node_id"], "bold"), "  ")
    if ready["status"] == "ok":
        text.append("ready", "bold green")
    else:
        text.append(
            resources["progress"] or "not ready",
            "bold yellow" if resources["progress"] else "bold red",
        )
    if ring.get("model_id"):
        text.append(f"  {ring['model_id']}", "cyan")
    if ring.get("formed"):
        text.append(f"  epoch {str(ring['epoch'])[:12]}", "dim")
    for made in resources.get("degradations", []):
        text.append(f"\n  {made['name']} ", "yellow")
        text.append(f"runs on {made['to']}: {made['reason']}")
    for name, reason in ready["failing"].items():
        text.append(f"\n  {name}: ", "red")
        text.append(str(reason))
    return text


def layer_map(ring: dict[str, Any], width: int = 60) -> Text:
    """One line: each node's share of the layers as a bar of its colour."""
    text, n_layers = Text(), max(1, ring["n_layers"])
    for index, stage in enumerate(ring["stages"]):
        # Cumulative, so that the lengths of the bars add up to the width despite rounding.
        begin, end = (
            round(layer * width / n_layers)
            for layer in (stage["start_layer"], stage["end_layer"] + 1)
        )
        text.append("█" * max(1, end - begin), _COLOURS[index % len(_COLOURS)])
    return text.append(f"  {n_layers} layers")


def _nodes(topology: dict[str, Any], ring: dict[str, Any]) -> Table:
    columns = ("Node", "Layers", "Planned", "Memory", "Hop", "Address", "State")
    table = Table(*columns, box=None, header_style="dim", pad_edge=False)
    stages = {
        stage["node_id"]: (index, stage) for index, stage in enumerate(ring.get("stages", []))
    }
    nodes = {node["id"]: node for node in topology.get("nodes", [])}
    for name in dict.fromkeys([*stages, *ring.get("standby", []), *nodes]):
        node = nodes.get(name, {})
        index, stage = stages.get(name, (None, None))
        layers = f"{stage['start_layer']}-{stage['end_layer']}" if stage else "standby"
        colour = "" if index is None else _COLOURS[index % len(_COLOURS)]
        planned, memory, hop = (
            f"{value} {unit}" if (value := of.get(field)) else ""
            for of, field, unit in (
                (stage or {}, "planned_mib", "MiB"),
                (node, "memory_mib", "MiB"),
                (stage or {}, "hop_ms", "ms"),
            )
        )
        address, state = (
            str(node.get("address", "")),
            "stuck" if node.get("stuck") else str(node.get("state", "")),
        )
        table.add_row(Text(name, colour), layers, planned, memory, hop, address, state)
    return table


def _resources(resources: dict[str, Any]) -> Table:
    table = Table("Resource", "State", "Reason", box=None, header_style="dim", pad_edge=False)
    for name, resource in sorted(resources.items(), key=lambda item: (item[1]["healthy"], item[0])):
        reason = "" if resource["healthy"] else resource["reason"] or resource["last_error"] or ""
        table.add_row(
            name, Text(resource["state"], _STATES.get(resource["state"], "dim")), Text(str(reason))
        )
    return table


def _requests(requests: list[dict[str, Any]]) -> Table:
    table = Table(
        "Request", "State", "Tokens", "tok/s", "Age", box=None, header_style="dim", pad_edge=False
    )
    for request in requests[:20]:
        rate = request.get("tokens_per_second") or 0
        table.add_row(
            str(request["request_id"]),
            str(request["state"]),
            f"{request['prompt_tokens']} + {request['completion_tokens']}",
            f"{rate:.1f}",
            f"{request['age_seconds']:.1f} s",
        )
    return table
