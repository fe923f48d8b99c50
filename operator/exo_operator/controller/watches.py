"""kopf's side: watches that put objects into the cache and keys into the queue. Nothing is decided
here.

Only `on.event` handlers: kopf then leaves no finalizer, no annotation and no status on any object.
"""

from __future__ import annotations

from typing import Any

import kopf

from exo import contract
from exo_operator.api import names
from exo_operator.controller.controller import Controller

WATCHED = (
    (contract.GROUP, contract.VERSION, names.PLURALS[names.KIND_NODE]),
    (contract.GROUP, contract.VERSION, names.PLURALS[names.KIND_CLUSTER]),
    ("", "v1", "pods"),
    ("", "v1", "services"),
    ("", "v1", "persistentvolumeclaims"),
    ("networking.k8s.io", "v1", "networkpolicies"),
    ("policy", "v1", "poddisruptionbudgets"),
)


def register(controller: Controller) -> kopf.OperatorRegistry:
    """A registry whose handlers feed `controller`."""
    registry = kopf.OperatorRegistry()

    async def on_event(event: Any, **_: Any) -> None:
        obj = dict(event["object"])
        if event["type"] == "DELETED":
            controller.deleted(obj)
        else:
            controller.seen(obj)

    for group, version, plural in WATCHED:
        kopf.on.event(group, version, plural, id=f"watch-{plural}", registry=registry)(on_event)
    kopf.on.login(id="login", registry=registry)(login)
    return registry


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, read anew each time kopf asks, or else KUBECONFIG."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
