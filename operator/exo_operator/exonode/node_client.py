"""Asks a node about itself over its HTTP API: readiness with reasons, its resources, its ring.

Answers of other versions of the node are read leniently: what is missing or odd stays unknown and
never raises.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp

from exo import contract
from exo_operator.api.status import ResourceHealth
from exo_operator.exonode.report import NodeReport

TIMEOUT_S = 1.5
MAX_BODY = 1 << 20
MAX_RESOURCES = 100
MAX_TEXT = 400
# The figures that are read from a node's metrics: of a histogram its mean, so two samples each.
HISTOGRAMS = (contract.METRIC_TOKENS_PER_SECOND, contract.METRIC_TIME_TO_FIRST_TOKEN)
SAMPLES = frozenset(
    {
        contract.METRIC_RESIDENT_MEMORY,
        *(f"{name}_{part}" for name in HISTOGRAMS for part in ("sum", "count")),
    }
)


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

    async def report(self, ip: str, name: str, *, figures: bool = False) -> NodeReport:
        """Ask the node at `ip`. With `figures`, ask for what it measured as well.

        Never raises: a node that does not answer is not reachable.
        """
        host = f"[{ip}]" if ":" in ip else ip
        base = f"http://{host}:{self._port}"
        answer = await self._try(f"{base}{contract.READY_PATH}?verbose")
        if answer is None:
            return NodeReport()
        facts = parse_ready(*answer)
        ring = await self._try(f"{base}/api/v1/ring")
        if ring is not None and ring[0] == 200:
            facts |= parse_ring(ring[1], name)
        else:
            facts["ring_formed"] = _formed_by_readiness(facts)
        if figures:
            page = await self._try(f"{base}{contract.METRICS_PATH}")
            if page is not None and isinstance(page[1], str):
                facts |= parse_metrics(page[1])
        return NodeReport(reachable=True, **facts)

    async def _try(self, url: str) -> tuple[int, Any] | None:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._get(url)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
            return None

    async def _get(self, url: str) -> tuple[int, Any]:
        if self._session is None:
            # No keep-alive: a pod that replaced another must not be asked over an old connection.
            connector = aiohttp.TCPConnector(force_close=True, limit=200)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=False)
        async with self._session.get(url, allow_redirects=False) as response:
            content = await response.content.read(MAX_BODY)
            if "json" not in response.content_type:
                return response.status, content.decode(errors="replace")
            return response.status, json.loads(content)


def _formed_by_readiness(facts: Mapping[str, Any]) -> bool | None:
    """Whether the ring is formed, if an API key keeps us from asking. Readiness covers the ring, so
    a node that is ready says enough.
    """
    if facts["ready"]:
        return True
    return False if "ring" in facts["failing"] else None


def parse_ready(status: int, body: Any) -> dict[str, Any]:
    """The facts in an answer of /readyz."""
    failing: dict[str, str] = {}
    if isinstance(body, Mapping):
        named = body.get("failing")
        if isinstance(named, Mapping):
            failing = {str(name): _text(reason) for name, reason in named.items()}
    facts: dict[str, Any] = {"ready": status == 200, "failing": {} if status == 200 else failing}
    return facts | (parse_resources(body) if isinstance(body, Mapping) else {})


def parse_ring(body: Any, name: str) -> dict[str, Any]:
    """The facts in an answer of /api/v1/ring, for the node called `name`."""
    if not isinstance(body, Mapping):
        return {}
    listed = body.get("stages")
    found = listed if isinstance(listed, list) else []
    stages = [stage for stage in found if isinstance(stage, Mapping)]
    own: Mapping[str, Any] = next((stage for stage in stages if stage.get("node_id") == name), {})
    start, end = _int(own.get("start_layer")), _int(own.get("end_layer"))
    epoch, formed = body.get("epoch"), body.get("formed")
    return {
        "ring_formed": formed if isinstance(formed, bool) else None,
        "ring_epoch": str(epoch)[:64] if epoch else None,
        "ring_size": len(stages) or None,
        "layers": (start, end) if start is not None and end is not None else None,
        "total_layers": _int(body.get("n_layers")),
        "planned_mib": _int(own.get("planned_mib")),
        "hop_ms": _float(own.get("hop_ms")),
    }


def parse_metrics(page: str) -> dict[str, Any]:
    """Means since the node started, and its resident memory, from its Prometheus page."""
    values: dict[str, float] = {}
    for line in page.splitlines():
        name, _, value = line.partition(" ")
        if name in SAMPLES:
            try:
                values[name] = float(value)
            except ValueError:
                continue

    def mean(metric: str) -> float | None:
        count = values.get(f"{metric}_count")
        return values.get(f"{metric}_sum", 0.0) / count if count else None

    ttft = mean(contract.METRIC_TIME_TO_FIRST_TOKEN)
    memory = values.get(contract.METRIC_RESIDENT_MEMORY)
    return {
        "tokens_per_second": mean(contract.METRIC_TOKENS_PER_SECOND),
        "ttft_ms": None if ttft is None else ttft * 1000,
        "used_mib": None if memory is None else int(memory / (1 << 20)),
    }


def parse_resources(body: Mapping[str, Any]) -> dict[str, Any]:
    """The health of each resource in a verbose answer."""
    items = body.get("resources")
    if isinstance(items, Mapping):
        items = [dict(item, name=key) for key, item in items.items() if isinstance(item, Mapping)]
    if not isinstance(items, list):
        return {}
    read = (_resource(item) for item in items[:MAX_RESOURCES] if isinstance(item, Mapping))
    found = {resource.name: resource for resource in read if resource is not None}
    return {"resources": tuple(found[name] for name in sorted(found))}


def _resource(item: Mapping[str, Any]) -> ResourceHealth | None:
    name = _first(item, "name", "resource_id", "id")
    if name is None:
        return None
    return ResourceHealth(
        name=str(name),
        healthy=bool(item.get("healthy")),
        state=_optional_text(item.get("state")),
        reason=_optional_text(item.get("reason")),
        last_error=_optional_text(item.get("last_error")),
    )


def _first(body: Mapping[str, Any], *keys: str) -> Any:
    return next((body[key] for key in keys if body.get(key) is not None), None)


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        value = _first(value, "reason", "message", "last_error") or value
    return str(value)[:MAX_TEXT]


def _optional_text(value: Any) -> str | None:
    return _text(value) if value else None


def _int(value: Any) -> int | None:
    return int(value) if _is_number(value) else None


def _float(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _is_number(value: Any) -> bool:
    """Whether it is a number that a status can hold. JSON as Python reads it has infinity, and
    integers of any length.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
