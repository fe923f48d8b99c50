"""`python -m exo_operator drain`: deletes every ExoCluster and ExoNode and waits until they and
their pods are gone.

It runs before the chart is uninstalled and needs no running operator: owner references do the rest,
and a pod on a dead machine is deleted by force at the end.
"""

from __future__ import annotations

import argparse
import asyncio

import structlog

from exo_operator.kube import kinds
from exo_operator.kube.client import KubeClient, KubeError, NotFound, connect
from exo_operator.kube.objects import Meta, Raw, ref_of

log = structlog.get_logger("exo_operator.uninstall")

# In the order of deletion: owners before what they own.
DELETED = (*kinds.CUSTOM, "Pod")
# The share of the time after which pods are deleted by force.
FORCE_AFTER = 0.8


async def main(argv: list[str]) -> int:
    """Returns 0 once nothing is left, 1 if the time was not enough."""
    parser = argparse.ArgumentParser(prog="python -m exo_operator drain", description=__doc__)
    parser.add_argument("--namespaces", default="", help="comma-separated; all if empty")
    parser.add_argument("--timeout", type=float, default=50.0, help="seconds in all")
    parser.add_argument("--grace", type=int, default=20, help="most seconds that a pod gets")
    options = parser.parse_args(argv)
    namespaces = tuple(name for name in options.namespaces.split(",") if name) or ("",)
    client = KubeClient(await connect())
    try:
        async with asyncio.timeout(options.timeout):
            return await drain(client, namespaces, options.grace, options.timeout)
    except TimeoutError:
        log.error("time is up", seconds=options.timeout)
        return 1
    finally:
        await client.close()


async def drain(
    client: KubeClient,
    namespaces: tuple[str, ...],
    grace: int,
    timeout: float,
    *,
    pause: float = 1.0,
) -> int:
    """Delete what is there, again and again until nothing is left. When most of the time is over,
    pods are deleted by force.
    """
    loop = asyncio.get_running_loop()
    force_at = loop.time() + FORCE_AFTER * timeout
    while True:
        left: list[Raw] = []
        for namespace in namespaces:
            for kind in DELETED:
                left.extend(await _objects(client, kind, namespace))
        if not left:
            log.info("nothing left")
            return 0
        forced = loop.time() >= force_at
        for obj in left:
            await _delete(client, obj, grace, forced)
        log.info("waiting", left=len(left))
        await asyncio.sleep(pause)


async def _objects(client: KubeClient, kind: str, namespace: str) -> list[Raw]:
    selector = kinds.BY_NAME[kind].selector
    try:
        return [obj async for obj in client.list_all(kind, namespace, selector)]
    except NotFound:
        # The custom resources are gone already.
        return []


async def _delete(client: KubeClient, obj: Raw, grace: int, forced: bool) -> None:
    ref, is_pod = ref_of(obj), obj["kind"] == "Pod"
    if Meta(obj).is_deleting and not (forced and is_pod):
        return
    seconds = (0 if forced else grace) if is_pod else None
    try:
        await client.delete(*ref, Meta(obj).uid, seconds)
    except KubeError as error:
        log.warning("not deleted", kind=ref.kind, name=ref.name, error=str(error))
