"""`python -m exo_operator drain`: deletes every ExoCluster and ExoNode and waits until they and
their pods are gone.

Run before the chart goes. It needs no running operator: the owner references do the rest, and a pod
whose machine is dead is deleted by force at the end.
"""

from __future__ import annotations

import argparse
import asyncio

import structlog

from exo_operator.api import names
from exo_operator.kube.client import Cluster, ClusterError, NotFound, connect
from exo_operator.kube.store import Raw

log = structlog.get_logger("exo_operator.uninstall")


async def main(argv: list[str]) -> int:
    """Returns 0 when nothing is left, 1 when the time was not enough."""
    parser = argparse.ArgumentParser(prog="python -m exo_operator drain", description=__doc__)
    parser.add_argument("--namespaces", default="", help="comma-separated; all where empty")
    parser.add_argument("--timeout", type=float, default=50.0, help="seconds in all")
    parser.add_argument("--grace", type=int, default=20, help="seconds that a pod gets at most")
    options = parser.parse_args(argv)
    namespaces = tuple(name for name in options.namespaces.split(",") if name) or ("",)
    cluster = Cluster(await connect())
    try:
        async with asyncio.timeout(options.timeout):
            return await drain(cluster, namespaces, options.grace, options.timeout)
    except TimeoutError:
        log.error("time is up", seconds=options.timeout)
        return 1
    finally:
        await cluster.close()


async def drain(
    cluster: Cluster, namespaces: tuple[str, ...], grace: int, timeout: float, *, pause: float = 1.0
) -> int:
    """Delete in the order clusters, nodes, pods; force what is left when most of the time is
    over.
    """
    loop = asyncio.get_running_loop()
    force_at = loop.time() + 0.8 * timeout
    while True:
        left: list[Raw] = []
        for namespace in namespaces:
            for kind in (names.KIND_CLUSTER, names.KIND_NODE, "Pod"):
                left.extend(await _objects(cluster, kind, namespace))
        if not left:
            log.info("nothing left")
            return 0
        forced = loop.time() >= force_at
        for obj in left:
            await _delete(cluster, obj, grace, forced)
        log.info("waiting", left=len(left))
        await asyncio.sleep(pause)


async def _objects(cluster: Cluster, kind: str, namespace: str) -> list[Raw]:
    selector = names.MANAGED_SELECTOR if kind == "Pod" else ""
    try:
        return [obj async for obj in cluster.list_all(kind, namespace, selector)]
    except NotFound:
        # The custom resources are gone already.
        return []


async def _delete(cluster: Cluster, obj: Raw, grace: int, forced: bool) -> None:
    metadata = obj["metadata"]
    if "deletionTimestamp" in metadata and not (forced and obj["kind"] == "Pod"):
        return
    seconds = (0 if forced else grace) if obj["kind"] == "Pod" else None
    try:
        await cluster.delete(
            obj["kind"], metadata["namespace"], metadata["name"], metadata["uid"], seconds
        )
    except ClusterError as error:
        log.warning("not deleted", kind=obj["kind"], name=metadata["name"], error=str(error))
