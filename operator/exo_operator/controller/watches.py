"""kopf's side: watches that put objects into the cache and keys into the queue. Nothing is decided
here.

There are only `on.event` handlers. With those, kopf leaves no finalizer, no annotation and no
status on any object.
"""

from __future__ import annotations

from typing import Any

import kopf

from exo_operator.controller.controller import Controller
from exo_operator.kube import kinds


def register(controller: Controller) -> kopf.OperatorRegistry:
    """A registry whose handlers feed `controller`."""
    registry = kopf.OperatorRegistry()

    async def on_event(event: Any, **_: Any) -> None:
        obj = dict(event["object"])
        if event["type"] == "DELETED":
            controller.deleted(obj)
        else:
            controller.seen(obj)

    for kind in kinds.WATCHED:
        watch = kopf.on.event(
            kind.group, kind.version, kind.plural, id=f"watch-{kind.plural}", registry=registry
        )
        watch(on_event)
    kopf.on.login(id="login", registry=registry)(login)
    return registry


def login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    """The pod's service account, read again each time kopf asks, or else KUBECONFIG."""
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
