"""Objects of the Kubernetes API as plain dicts, and typed read access to them. Pure.

The dicts are as the API server sent them; nothing in the operator changes one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from exo import contract
from exo_operator.api import names

# An object of the Kubernetes API, or a part of one.
Raw = dict[str, Any]


class Ref(NamedTuple):
    """Names one object of any kind."""

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Meta:
    """Read access to the metadata of an object."""

    obj: Raw

    @property
    def raw(self) -> Raw:
        metadata: Raw = self.obj["metadata"]
        return metadata

    @property
    def name(self) -> str:
        return str(self.raw["name"])

    @property
    def namespace(self) -> str:
        return str(self.raw.get("namespace", ""))

    @property
    def uid(self) -> str:
        return str(self.raw.get("uid", ""))

    @property
    def generation(self) -> int:
        return int(self.raw.get("generation", 0))

    @property
    def version(self) -> int:
        """The resource version, which is a number since Kubernetes 1.35; 0 if it is not one."""
        text = str(self.raw.get("resourceVersion", ""))
        return int(text) if text.isdigit() else 0

    @property
    def labels(self) -> dict[str, str]:
        return self.raw.get("labels") or {}

    @property
    def annotations(self) -> dict[str, str]:
        return self.raw.get("annotations") or {}

    @property
    def owners(self) -> Sequence[Raw]:
        return self.raw.get("ownerReferences") or ()

    @property
    def controller_uid(self) -> str | None:
        """The uid of the controlling owner."""
        return next((str(owner["uid"]) for owner in self.owners if owner.get("controller")), None)

    @property
    def is_deleting(self) -> bool:
        return "deletionTimestamp" in self.raw

    @property
    def deletion_ends(self) -> datetime | None:
        """When the grace period of a deletion ends. The API server has added the grace already."""
        text = self.raw.get("deletionTimestamp")
        return datetime.fromisoformat(text) if text else None

    @property
    def is_managed(self) -> bool:
        """Whether the object carries the operator's label."""
        return self.labels.get(names.LABEL_MANAGED_BY) == names.MANAGED_BY


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectRef:
    """An object as it was read. The custom resources add their parsed spec and status."""

    raw: Raw

    @property
    def meta(self) -> Meta:
        return Meta(self.raw)

    @property
    def name(self) -> str:
        return self.meta.name

    @property
    def namespace(self) -> str:
        return self.meta.namespace

    @property
    def uid(self) -> str:
        return self.meta.uid


def ref_of(obj: Raw) -> Ref:
    """The Ref of an object."""
    meta = Meta(obj)
    return Ref(obj["kind"], meta.namespace, meta.name)


def version_of(obj: Raw) -> int:
    """The resource version of an object as a number."""
    return Meta(obj).version


def owner_reference(owner: Raw, *, controller: bool = True) -> Raw:
    """An owner reference to an object as the API server returned it.

    `blockOwnerDeletion` stays false: it would let a stuck child hold back the deletion of its
    owner, and it needs a permission on finalizers.
    """
    meta = Meta(owner)
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": meta.name,
        "uid": meta.uid,
        "controller": controller,
        "blockOwnerDeletion": False,
    }


@dataclass(frozen=True, slots=True)
class PodView:
    """Read access to a pod with one container."""

    raw: Raw

    @property
    def meta(self) -> Meta:
        return Meta(self.raw)

    @property
    def spec(self) -> Raw:
        return self.raw.get("spec") or {}

    @property
    def status(self) -> Raw:
        return self.raw.get("status") or {}

    @property
    def uid(self) -> str:
        return self.meta.uid

    @property
    def is_deleting(self) -> bool:
        return self.meta.is_deleting

    @property
    def spec_hash(self) -> str | None:
        return self.meta.annotations.get(names.ANNOTATION_SPEC_HASH)

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", "Pending"))

    @property
    def is_finished(self) -> bool:
        return self.phase in ("Failed", "Succeeded")

    @property
    def ip(self) -> str | None:
        return self.status.get("podIP")

    @property
    def node_name(self) -> str | None:
        return self.spec.get("nodeName")

    def condition(self, type_: str) -> Raw | None:
        found = self.status.get("conditions") or ()
        return next((each for each in found if each.get("type") == type_), None)

    @property
    def is_ready(self) -> bool:
        condition = self.condition("Ready")
        return condition is not None and condition.get("status") == "True"

    @property
    def has_ring_gate(self) -> bool:
        gates = self.spec.get("readinessGates") or ()
        return any(gate.get("conditionType") == contract.RING_FORMED_GATE for gate in gates)

    def reads_secret(self, name: str) -> bool:
        """Whether one of its environment variables comes from this Secret."""
        containers = self.spec.get("containers") or ()
        sources = [
            env.get("valueFrom") or {} for each in containers for env in each.get("env") or ()
        ]
        return any((source.get("secretKeyRef") or {}).get("name") == name for source in sources)

    @property
    def container(self) -> Raw:
        """The status of the container; empty before the kubelet has reported one."""
        statuses = self.status.get("containerStatuses") or [{}]
        first: Raw = statuses[0]
        return first

    @property
    def waiting(self) -> Raw | None:
        """Reason and message of a container that waits."""
        return (self.container.get("state") or {}).get("waiting")

    @property
    def terminated(self) -> Raw | None:
        """How a container that is not running now ended."""
        return (self.container.get("state") or {}).get("terminated")

    @property
    def last_terminated(self) -> Raw | None:
        """How the container before the current one ended."""
        return (self.container.get("lastState") or {}).get("terminated")

    @property
    def waiting_for(self) -> str:
        """Why the container has not started, in the kubelet's one word; empty if it has."""
        return str((self.waiting or {}).get("reason") or "")

    @property
    def is_running(self) -> bool:
        return "running" in (self.container.get("state") or {})

    @property
    def has_started(self) -> bool:
        """Whether the startup probe has passed."""
        return bool(self.container.get("started"))

    @property
    def restarts(self) -> int:
        return int(self.container.get("restartCount", 0))
