"""An API server in memory, with just the calls that the operator makes. It counts the writes."""

from __future__ import annotations

import copy
import itertools
from collections.abc import AsyncIterator
from typing import Any

from exo_operator.exonode.report import NodeReport
from exo_operator.kube import kinds
from exo_operator.kube.client import Conflicted, KubeError, NotFound
from exo_operator.kube.objects import Raw, Ref, ref_of
from exo_operator.kube.store import Store


class FakeKube:
    """Objects by Ref. It counts writes and, like the API server, gives each object a version."""

    def __init__(self) -> None:
        self.objects: dict[Ref, Raw] = {}
        self.writes: list[str] = []
        self.events: list[Raw] = []
        self.refuse: dict[str, KubeError] = {}
        self._versions = itertools.count(1000)

    def seed(self, obj: Raw) -> Raw:
        metadata = obj["metadata"]
        metadata.setdefault("uid", f"uid-{obj['kind']}-{metadata['name']}-{next(self._versions)}")
        metadata.setdefault("generation", 1)
        metadata["resourceVersion"] = str(next(self._versions))
        self.objects[ref_of(obj)] = obj
        return copy.deepcopy(obj)

    def tell(self, store: Store) -> None:
        """Bring a cache up to date, deletions included."""
        for kind in kinds.ALL:
            for known in list(store.of_kind(kind.name)):
                live = self.objects.get(ref_of(known))
                if live is None or live["metadata"]["uid"] != known["metadata"].get("uid"):
                    store.remove(known)
        for obj in self.objects.values():
            if obj["kind"] != "Secret":  # no watch: the operator may not read them
                store.put(copy.deepcopy(obj), watched=True)

    async def get(self, kind: str, namespace: str, name: str) -> Raw:
        found = self.objects.get(Ref(kind, namespace, name))
        if found is None:
            raise NotFound(404, f"{kind} {name} not found")
        return copy.deepcopy(found)

    async def apply(self, manifest: Raw) -> Raw:
        ref = ref_of(manifest)
        if ref.kind in self.refuse:
            raise self.refuse[ref.kind]
        self.writes.append(f"apply {ref.kind} {ref.name}")
        old = self.objects.get(ref)
        made = copy.deepcopy(manifest)
        if old is not None:
            changed = old.get("spec") != made.get("spec")
            kept = {key: old["metadata"][key] for key in ("uid", "generation")}
            made["metadata"] |= kept | {"generation": kept["generation"] + changed}
            if "status" in old:
                made["status"] = old["status"]
        return self.seed(made)

    async def apply_status(self, obj: Raw, status: Raw) -> Raw:
        live = self.objects.get(ref_of(obj))
        if live is None:
            raise NotFound(404, "gone")
        if live["metadata"]["uid"] != obj["metadata"]["uid"]:
            raise Conflicted(409, "another object")
        self.writes.append(f"status {obj['kind']} {obj['metadata']['name']}")
        return self.seed(live | {"status": copy.deepcopy(status)})

    async def set_pod_condition(self, namespace: str, name: str, uid: str, condition: Raw) -> Raw:
        live = await self.get("Pod", namespace, name)
        if live["metadata"]["uid"] != uid:
            raise Conflicted(409, "another pod")
        self.writes.append(f"gate {name} {condition['status']}")
        conditions = [c for c in live["status"]["conditions"] if c["type"] != condition["type"]]
        live["status"]["conditions"] = [*conditions, condition]
        return self.seed(live)

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        self.writes.append(f"delete {kind} {name}")
        live = self.objects.get(Ref(kind, namespace, name))
        if live is not None and live["metadata"]["uid"] == uid:
            self.collect(Ref(kind, namespace, name))

    def collect(self, ref: Ref) -> None:
        """Remove an object, and what it alone owns."""
        gone = self.objects.pop(ref)["metadata"]["uid"]
        for other in list(self.objects):
            live = self.objects.get(other)
            owners = (live or {}).get("metadata", {}).get("ownerReferences") or []
            if live is not None and owners and all(owner["uid"] == gone for owner in owners):
                self.collect(other)

    async def list_all(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> AsyncIterator[Raw]:
        for ref, obj in list(self.objects.items()):
            if ref.kind == kind and namespace in ("", ref.namespace):
                yield copy.deepcopy(obj)

    async def create_secret(self, manifest: Raw) -> bool:
        if "Secret" in self.refuse:
            raise self.refuse["Secret"]
        if ref_of(manifest) in self.objects:
            return False
        self.writes.append(f"create Secret {manifest['metadata']['name']}")
        self.seed(copy.deepcopy(manifest))
        return True

    async def create_event(self, event: Raw) -> None:
        self.events.append(event)

    def run_pods(self) -> None:
        """Act as the kubelet: each pod runs, and it is Ready as soon as its gate is open."""
        for ref, pod in list(self.objects.items()):
            if ref.kind != "Pod":
                continue
            status = pod.setdefault("status", {"conditions": []})
            gates = [gate["conditionType"] for gate in pod["spec"].get("readinessGates", ())]
            given = {c["type"]: c["status"] for c in status["conditions"]}
            ready = "True" if all(given.get(gate) == "True" for gate in gates) else "False"
            others = [c for c in status["conditions"] if c["type"] not in ("Ready", "PodScheduled")]
            status |= {
                "phase": "Running",
                "podIP": f"10.0.0.{len(ref.name)}",
                "conditions": [
                    *others,
                    {"type": "PodScheduled", "status": "True"},
                    {"type": "Ready", "status": ready},
                ],
                "containerStatuses": status.get("containerStatuses")
                or [{"name": "node", "started": True, "restartCount": 0, "state": {"running": {}}}],
            }
            pod["spec"]["nodeName"] = "machine"
            self.seed(pod)


class FakeNodes:
    """Gives every node the same report, unless `of` has one for its name."""

    def __init__(self) -> None:
        self.usual: Any = NodeReport(reachable=True, ready=True, ring_formed=True, ring_epoch="e1")
        self.of: dict[str, NodeReport] = {}

    async def report(self, ip: str, name: str, *, figures: bool = False) -> NodeReport:
        found: NodeReport = self.of.get(name, self.usual)
        return found

    async def close(self) -> None:
        return
