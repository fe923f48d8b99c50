"""What the planner sees of the world: the objects of the cache, and what a node said about itself.
Pure records.

`Store` is the cache that the watches fill; it holds plain dicts as the API server sent them, the
newest of each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from exo import contract
from exo_operator.api import names

Raw = dict[str, Any]


class Ref(NamedTuple):
    """Names one object of any kind."""

    kind: str
    namespace: str
    name: str


def ref_of(obj: Raw) -> Ref:
    """The Ref of an object."""
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace", ""), metadata["name"])


def version_of(obj: Raw) -> int:
    """The resource version as the number that it is since Kubernetes 1.35; 0 where it is none."""
    text = str(obj["metadata"].get("resourceVersion", ""))
    return int(text) if text.isdigit() else 0


class Store:
    """The newest known version of every object we watch, with an index of pods and nodes by
    cluster.

    Invariant: an object never goes back to an older version. A deletion is remembered by uid, so
    that a late answer to a write does not bring a deleted object back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects: dict[Ref, Raw] = {}
        self._gone: dict[str, float] = {}
        self._watched: dict[Ref, int] = {}
        self._clock = clock

    def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        return self._objects.get(Ref(kind, namespace, name))

    def put(self, obj: Raw, *, watched: bool = False) -> bool:
        """Take an object in; says whether it was news: to the cache, or, where a watch brings it,
        to the watch.

        What we wrote ourselves is in the cache already when the watch brings it, and still concerns
        others, like the owner of the object.
        """
        ref, version = ref_of(obj), version_of(obj)
        if obj["metadata"].get("uid") in self._gone:
            return False
        fresh = False
        if watched:
            fresh = version == 0 or version > self._watched.get(ref, 0)
            self._watched[ref] = max(version, self._watched.get(ref, 0))
        known = self._objects.get(ref)
        if known is not None and version_of(known) >= version > 0:
            return fresh
        # A third of every object is its field managers, which nobody here reads.
        metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
        self._objects[ref] = obj | {"metadata": metadata}
        return True

    def remove(self, obj: Raw) -> None:
        """Forget a deleted object, unless another one has its name by now."""
        ref = ref_of(obj)
        uid = obj["metadata"].get("uid")
        now = self._clock()
        self._gone = {key: at for key, at in self._gone.items() if now - at < 300.0}
        if uid:
            self._gone[uid] = now
        known = self._objects.get(ref)
        if known is not None and known["metadata"].get("uid") == uid:
            del self._objects[ref]
            self._watched.pop(ref, None)

    def watched_version(self, ref: Ref) -> int:
        """The newest version that a watch delivered; 0 for none."""
        return self._watched.get(ref, 0)

    def of_kind(self, kind: str) -> Iterator[Raw]:
        return (obj for ref, obj in list(self._objects.items()) if ref.kind == kind)

    def nodes_of_cluster(self, namespace: str, cluster: str) -> list[Raw]:
        """The ExoNodes that name this cluster, by name; those in deletion excluded."""
        found = [
            obj
            for obj in self.of_kind(names.KIND_NODE)
            if obj["metadata"]["namespace"] == namespace
            and obj.get("spec", {}).get("cluster") == cluster
            and "deletionTimestamp" not in obj["metadata"]
        ]
        return sorted(found, key=lambda obj: str(obj["metadata"]["name"]))

    def controlled_by(self, kind: str, namespace: str, uid: str) -> list[Raw]:
        """The objects of a kind whose controller has this uid, by name."""
        found = [
            obj
            for obj in self.of_kind(kind)
            if obj["metadata"].get("namespace") == namespace
            and any(
                o.get("controller") and o.get("uid") == uid
                for o in obj["metadata"].get("ownerReferences") or ()
            )
        ]
        return sorted(found, key=lambda obj: str(obj["metadata"]["name"]))

    def __len__(self) -> int:
        return len(self._objects)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node's own endpoints answered. `reachable` false: nothing answered, and all else is
    unknown.
    """

    reachable: bool = False
    ready: bool | None = None
    started: bool | None = None
    # Failing resource -> reason.
    failing: dict[str, str] = field(default_factory=dict)
    resources: tuple[Raw, ...] = ()
    ring_formed: bool | None = None
    ring_epoch: str | None = None
    ring_size: int | None = None
    layers: tuple[int, int] | None = None
    total_layers: int | None = None
    planned_mib: int | None = None
    used_mib: int | None = None
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    hop_ms: float | None = None


@dataclass(frozen=True, slots=True)
class PodView:
    """Read access to a pod's raw object."""

    raw: Raw

    @property
    def uid(self) -> str:
        return str(self.raw["metadata"].get("uid", ""))

    @property
    def deleting(self) -> bool:
        return "deletionTimestamp" in self.raw["metadata"]

    @property
    def spec_hash(self) -> str | None:
        return (self.raw["metadata"].get("annotations") or {}).get(names.ANNOTATION_SPEC_HASH)

    @property
    def status(self) -> Raw:
        return self.raw.get("status") or {}

    def reads_secret(self, name: str) -> bool:
        """Whether an environment variable of its comes from this Secret."""
        containers = (self.raw.get("spec") or {}).get("containers") or ()
        sources = [
            env.get("valueFrom") or {} for each in containers for env in each.get("env") or ()
        ]
        return any((source.get("secretKeyRef") or {}).get("name") == name for source in sources)

    @property
    def waiting_for(self) -> str:
        """Why its container has not started, in the kubelet's one word; "" where it has."""
        return str(((self.container.get("state") or {}).get("waiting") or {}).get("reason") or "")

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def finished(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def ip(self) -> str | None:
        return self.status.get("podIP")

    @property
    def node_name(self) -> str | None:
        return (self.raw.get("spec") or {}).get("nodeName")

    def condition(self, type_: str) -> Raw | None:
        return next(
            (c for c in self.status.get("conditions") or () if c.get("type") == type_), None
        )

    @property
    def ready(self) -> bool:
        condition = self.condition("Ready")
        return condition is not None and condition.get("status") == "True"

    @property
    def has_ring_gate(self) -> bool:
        gates = (self.raw.get("spec") or {}).get("readinessGates") or ()
        return any(gate.get("conditionType") == contract.RING_FORMED_GATE for gate in gates)

    @property
    def container(self) -> Raw:
        statuses = self.status.get("containerStatuses") or [{}]
        first: Raw = statuses[0]
        return first

    @property
    def running(self) -> bool:
        return "running" in (self.container.get("state") or {})

    @property
    def restarts(self) -> int:
        return int(self.container.get("restartCount", 0))
