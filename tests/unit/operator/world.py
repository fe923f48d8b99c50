"""A reconciler with everything around it in memory, for tests that let it converge."""

from __future__ import annotations

from typing import Any

from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.reconcile import Reconciler
from exo_operator.kube.objects import Ref
from exo_operator.kube.store import Store

from .builders import DEFAULTS, NOW
from .fake_kube import FakeKube, FakeNodes

BUNDLED = {"model": {"name": "smollm2-135m"}}


class World:
    """In one step the watches bring every change, every custom resource is reconciled, and the
    kubelets act.
    """

    def __init__(self, kube: FakeKube | None = None) -> None:
        self.kube = kube or FakeKube()
        self.nodes = FakeNodes()
        self.store = Store()
        self.metrics = Metrics()
        self.reconciler = Reconciler(
            self.kube,  # type: ignore[arg-type]
            self.store,
            self.nodes,  # type: ignore[arg-type]
            DEFAULTS,
            self.metrics,
            now=lambda: NOW,
        )

    def make(self, kind: str, name: str, spec: dict[str, Any], **metadata: Any) -> Key:
        obj = {"apiVersion": names.API_VERSION, "kind": kind, "spec": spec}
        self.kube.seed(obj | {"metadata": {"name": name, "namespace": "default", **metadata}})
        return Key(kind, "default", name)

    def change(self, key: Key, **spec: Any) -> None:
        live = self.kube.objects[Ref(*key)]
        live["spec"] = live["spec"] | spec
        live["metadata"]["generation"] += 1
        self.kube.seed(live)

    async def step(self) -> None:
        self.kube.tell(self.store)
        for ref in [ref for ref in self.kube.objects if ref.kind in names.PLURALS]:
            await self.reconciler.run(Key(*ref))
        self.kube.run_pods()

    async def settle(self, steps: int = 12) -> None:
        for _ in range(steps):
            await self.step()

    def live(self, kind: str, name: str) -> dict[str, Any]:
        return self.kube.objects[Ref(kind, "default", name)]

    def has(self, kind: str, name: str) -> bool:
        return Ref(kind, "default", name) in self.kube.objects

    def condition(self, key: Key, type_: str = "Ready") -> tuple[str, str]:
        found = self.live(key.kind, key.name)["status"]["conditions"]
        return next((c["status"], c["reason"]) for c in found if c["type"] == type_)

    def names(self, kind: str) -> list[str]:
        return sorted(ref.name for ref in self.kube.objects if ref.kind == kind)
