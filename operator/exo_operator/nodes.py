"""Asks a node about itself over its HTTP API: readiness with reasons, its resources, the ring.

Answers of other versions of the node are read leniently: what is missing or odd stays unknown, and never raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from exo import contract
from exo_operator.observed import NodeReport, Raw

TIMEOUT_S = 2.0
MAX_BODY = 1 << 20
MAX_RESOURCES = 100


class NodeClient:
    """One session for all nodes. Open it inside a running loop; close it at the end."""

    def __init__(self, timeout: float = TIMEOUT_S, port: int = contract.API_PORT) -> None:
        self._timeout = timeout
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def report(self, ip: str, name: str) -> NodeReport:
        """Ask the node at `ip`. Never raises: a node that does not answer gives `reachable=False`."""
        host = f"[{ip}]" if ":" in ip else ip
        base = f"http://{host}:{self._port}"
        try:
            async with asyncio.timeout(self._timeout):
                status, body = await self._get(f"{base}{contract.READY_PATH}?verbose")
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return NodeReport()
        facts = parse_ready(status, body)
        for path, parse in (("ring", parse_ring), ("resources", parse_resources)):
            try:
                async with asyncio.timeout(self._timeout):
                    code, body = await self._get(f"{base}/api/v1/{path}")
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                continue
            if code == 200:
                facts |= parse(body, name)
        return NodeReport(reachable=True, **facts)

    async def _get(self, url: str) -> tuple[int, Any]:
        if self._session is None:
            # No keep-alive: a replaced pod must not be asked over an old connection.
            connector = aiohttp.TCPConnector(force_close=True, limit=200)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        async with self._session.get(url, allow_redirects=False) as response:
            content = await response.content.read(MAX_BODY)
            if "json" not in response.content_type:
                return response.status, None
            return response.status, json.loads(content)


def parse_ready(status: int, body: Any) -> dict[str, Any]:
    """The facts in an answer of /readyz."""
    failing: dict[str, str] = {}
    if isinstance(body, Mapping):
        named = body.get("failing")
        if isinstance(named, Mapping):
            failing = {str(name): _text(reason) for name, reason in named.items()}
    return {"ready": status == 200, "failing": {} if status == 200 else failing}


def parse_ring(body: Any, name: str) -> dict[str, Any]:
    """The facts in an answer of /api/v1/ring, seen for the node called `name`."""
    if not isinstance(body, Mapping):
        return {}
    stages = _first(body, "stages", "nodes", "members", "plan")
    if isinstance(stages, Mapping):
        stages = [dict(value, node=key) if isinstance(value, Mapping) else value for key, value in stages.items()]
    stages = [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list) else []
    own: Mapping[str, Any] = next((s for s in stages if name in (s.get("node_id"), s.get("node"), s.get("id"))), {})
    start, end = _int(_first(own, "start_layer", "start")), _int(_first(own, "end_layer", "end"))
    epoch = _first(body, "epoch", "epoch_hash")
    formed = _first(body, "formed", "ring_formed")
    return {
        "ring_formed": formed if isinstance(formed, bool) else None,
        "ring_epoch": str(epoch)[:64] if epoch is not None else None,
        "ring_size": len(stages) or None,
        "layers": (start, end) if start is not None and end is not None else None,
        "total_layers": _int(_first(body, "n_layers", "layers", "total_layers")),
        "planned_mib": _int(_first(own, "planned_mib", "memory_mib", "planned_memory_mib")),
        "used_mib": _int(_first(own, "used_mib", "rss_mib")) or _int(_first(body, "rss_mib")),
        "tokens_per_second": _float(_first(body, "tokens_per_second", "tok_s")),
        "ttft_ms": _float(_first(body, "ttft_ms")),
        "hop_ms": _float(_first(own, "hop_ms")) or _float(_first(body, "hop_ms")),
    }


def parse_resources(body: Any, _name: str) -> dict[str, Any]:
    """The facts in an answer of /api/v1/resources."""
    items = body.get("resources") if isinstance(body, Mapping) else body
    if isinstance(items, Mapping):
        items = [dict(value, name=key) for key, value in items.items() if isinstance(value, Mapping)]
    if not isinstance(items, list):
        return {}
    found: dict[str, Raw] = {}
    for item in items[:MAX_RESOURCES]:
        if not isinstance(item, Mapping):
            continue
        name = _first(item, "name", "resource_id", "id")
        if name is None:
            continue
        entry: Raw = {"name": str(name), "healthy": bool(item.get("healthy"))}
        optional = {"state": item.get("state"), "reason": item.get("reason"), "lastError": item.get("last_error")}
        entry |= {key: _text(value) for key, value in optional.items() if value}
        found[str(name)] = entry
    return {"resources": tuple(found[name] for name in sorted(found))}


def _first(body: Mapping[str, Any], *keys: str) -> Any:
    return next((body[key] for key in keys if body.get(key) is not None), None)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = _first(value, "reason", "message", "last_error") or value
    return str(value)[:400]


def _int(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
