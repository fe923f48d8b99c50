"""Carries actions out and writes statuses: the thin shell around the pure planners."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from datetime import datetime

import structlog

from exo import contract
from exo_operator.api.conditions import (
    CommonReason,
    NodeCondition,
    Verdict,
    conditions,
    flips,
    status_word,
)
from exo_operator.api.fields import timestamp
from exo_operator.api.status import STATUS_MODELS, ConditionedStatus, read_status
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.workqueue import TokenBucket
from exo_operator.exonode import secret
from exo_operator.kube import ownership
from exo_operator.kube.actions import Action, Apply, Conflict, Delete, MakeSecret, SetGate
from exo_operator.kube.client import Conflicted, KubeClient, KubeError, NotFound, event
from exo_operator.kube.diff import differs
from exo_operator.kube.objects import Meta, Raw, owner_reference, ref_of
from exo_operator.kube.store import Store

log = structlog.get_logger("exo_operator.controller.executor")

# Actions per second on average, and at once.
ACTION_RATE = 50.0
ACTION_BURST = 100
SECRET_BYTES = 32


class Executor:
    """Writes to the API server at a bounded rate, and takes each answer into the cache at once."""

    def __init__(
        self, client: KubeClient, store: Store, metrics: Metrics, now: Callable[[], datetime]
    ) -> None:
        self._client = client
        self._store = store
        self._metrics = metrics
        self._now = now
        self._bucket = TokenBucket(rate=ACTION_RATE, burst=ACTION_BURST)

    async def act(self, owner: Raw, action: Action) -> list[Conflict]:
        """Carry one action out. Returns the names that were found taken."""
        wait = self._bucket.take()
        if wait:
            await asyncio.sleep(wait)
        match action:
            case Apply():
                return await self._apply(owner, action)
            case Delete():
                await self._delete(owner, action)
            case SetGate():
                await self._set_gate(action)
            case MakeSecret():
                await self._make_secret(owner, action)
        return []

    async def _apply(self, owner: Raw, action: Apply) -> list[Conflict]:
        ref = ref_of(action.manifest)
        if not action.exists:
            # Not in the cache does not mean that it does not exist: it may be new, or carry none of
            # our labels.
            try:
                live = await self._client.get(*ref)
            except NotFound:
                pass
            else:
                return self._adopt(owner, live)
        log.info("apply", kind=ref.kind, namespace=ref.namespace, name=ref.name, why=action.why)
        self._metrics.actions.labels("apply", ref.kind).inc()
        self._store.put(await self._client.apply(action.manifest))
        return []

    def _adopt(self, owner: Raw, live: Raw) -> list[Conflict]:
        """Take an object of this owner into the cache. The next reconcile finds what differs."""
        if ownership.is_adoptable(live, Meta(owner).uid):
            self._store.put(live)
            return []
        # What an earlier object of the owner's name left goes away; anything else stays.
        ref = ref_of(live)
        return [] if Meta(live).is_deleting else [Conflict(ref.kind, ref.name)]

    async def _make_secret(self, node: Raw, action: MakeSecret) -> None:
        """The value of the Secret is in no log, no event and no cache."""
        owner = action.owner
        if owner is None:
            service = self._store.get("Service", action.namespace, action.service)
            is_ours = service is not None and Meta(service).is_managed
            owner = owner_reference(service if service and is_ours else node, controller=False)
        made = secret.manifest(action, owner, secrets.token_urlsafe(SECRET_BYTES))
        if await self._client.create_secret(made):
            self._metrics.actions.labels("create", "Secret").inc()
            log.info("made", kind="Secret", namespace=action.namespace, name=action.name)

    async def _delete(self, owner: Raw, action: Delete) -> None:
        kind, namespace, name = action.kind, action.namespace, action.name
        self._metrics.actions.labels("delete", kind).inc()
        log.info("delete", kind=kind, namespace=namespace, name=name, why=action.why)
        await self._client.delete(kind, namespace, name, action.uid, action.grace)
        note = f"{kind} {name}: {action.why}"
        await self.emit(owner, "Normal", action.reason, "Delete", note)

    async def _set_gate(self, action: SetGate) -> None:
        condition = {
            "type": contract.RING_FORMED_GATE,
            "status": status_word(action.ready),
            "reason": action.reason,
            "message": action.message,
            "lastTransitionTime": timestamp(self._now()),
        }
        try:
            pod = await self._client.set_pod_condition(
                action.namespace, action.name, action.uid, condition
            )
        except (NotFound, Conflicted):
            return
        self._store.put(pod)

    async def write_status(self, raw: Raw, status: ConditionedStatus) -> None:
        """Write a status if it changed, and emit an event if Ready flipped."""
        live, wanted = raw.get("status") or {}, status.to_wire()
        if not differs(wanted, live) and set(live) <= set(wanted):
            return
        try:
            self._store.put(await self._client.apply_status(raw, wanted))
        except (NotFound, Conflicted):
            return
        before = read_status(type(status), live)
        for condition in flips(before.conditions, status.conditions):
            if condition.type == NodeCondition.READY:
                type_ = "Normal" if condition.status == "True" else "Warning"
                note = condition.message or f"Ready is {condition.status}"
                await self.emit(raw, type_, condition.reason, "StatusChanged", note)

    async def write_ready(
        self, raw: Raw, reason: CommonReason, message: str, retry: datetime | None = None
    ) -> None:
        """Say that the object is not Ready, and keep the rest of its status."""
        old = read_status(STATUS_MODELS[raw["kind"]], raw.get("status"))
        generation = Meta(raw).generation
        verdicts = {NodeCondition.READY: Verdict(False, reason, message)}
        ready = conditions(verdicts, old.conditions, generation, self._now())
        others = [each for each in old.conditions if each.type != NodeCondition.READY]
        await self.write_status(raw, old.with_conditions([*ready, *others], generation, retry))

    async def emit(self, regarding: Raw, type_: str, reason: str, action: str, note: str) -> None:
        """Record an event. A failure to do so is not a failure of the reconcile."""
        at = self._now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        made = event(
            regarding,
            type_=type_,
            reason=reason,
            action=action,
            note=note,
            at=at,
            instance=socket.gethostname(),
        )
        try:
            await self._client.create_event(made)
        except (KubeError, OSError, TimeoutError) as error:
            log.warning("event not recorded", error=str(error))
