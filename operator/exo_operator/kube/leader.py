"""Leadership by a Lease, with the client library's own election: one replica acts, the others wait.

A replica that loses its Lease exits and comes back as a candidate. It never acts without the Lease.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from kubernetes.aio.client import ApiClient, ApiException, CoordinationV1Api, V1Lease, V1ObjectMeta
from kubernetes.aio.leaderelection import electionconfig, leaderelection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

log = structlog.get_logger("exo_operator.kube.leader")

LEASE_S = 15
RENEW_S = 10
RETRY_S = 2


class _Lock(LeaseLock):  # type: ignore[misc]  # the client library has no types
    """The library's lock, except that a broken connection is a failure to be tried again and raises
    nothing.
    """

    async def get(self, name: str, namespace: str) -> tuple[bool, Any]:
        try:
            result: tuple[bool, Any] = await super().get(name, namespace)
            return result
        except (OSError, TimeoutError) as error:
            return False, ApiException(status=0, reason=repr(error))

    async def create(self, name: str, namespace: str, election_record: Any) -> bool:
        # Not the library's own: in 37.0 it passes its generated client a value that the client
        # refuses.
        body = V1Lease(metadata=V1ObjectMeta(name=name), spec=self.update_lease(election_record))
        try:
            await self.api_instance.create_namespaced_lease(namespace, body)
        except (ApiException, OSError, TimeoutError) as error:
            log.warning("lease not created", error=repr(error))
            return False
        return True

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        try:
            return bool(await super().update(name, namespace, updated_record))
        except (OSError, TimeoutError) as error:
            log.warning("lease not renewed", error=repr(error))
            return False


class Leadership:
    """The Lease of one replica."""

    def __init__(self, api: ApiClient, name: str, namespace: str, identity: str) -> None:
        self._api = api
        self._name = name
        self._namespace = namespace
        self._identity = identity
        self.gained = asyncio.Event()
        self.lost = asyncio.Event()

    async def campaign(self) -> None:
        """Run until the Lease is lost. `gained` and `lost` are set on the way."""

        async def started() -> None:
            log.info("leading", lease=f"{self._namespace}/{self._name}", identity=self._identity)
            self.gained.set()

        async def stopped() -> None:
            log.error("lease lost", lease=f"{self._namespace}/{self._name}")
            self.lost.set()

        lock = _Lock(self._name, self._namespace, self._identity, self._api)
        config = electionconfig.Config(
            lock,
            lease_duration=LEASE_S,
            renew_deadline=RENEW_S,
            retry_period=RETRY_S,
            onstarted_leading=started,
            onstopped_leading=stopped,
        )
        await leaderelection.LeaderElection(config).run()

    async def release(self) -> None:
        """Give the Lease up, so that the next leader does not wait for it to expire."""
        if not self.gained.is_set() or self.lost.is_set():
            return
        leases = CoordinationV1Api(self._api)
        try:
            lease = await leases.read_namespaced_lease(self._name, self._namespace)
            if lease.spec.holder_identity == self._identity:
                lease.spec.holder_identity = None
                await leases.replace_namespaced_lease(self._name, self._namespace, lease)
        except (ApiException, OSError, TimeoutError) as error:
            log.warning("lease not released", error=repr(error))
