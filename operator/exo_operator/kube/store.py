"""The cache that the watches fill: the newest of each object, as the API server sent it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from exo_operator.api import names
from exo_operator.kube.objects import Meta, Raw, Ref, ref_of, version_of

# How long a deletion is remembered: longer than any answer to a write can take.
REMEMBERED_S = 300.0


@dataclass(frozen=True, slots=True)
class Objects:
    """Some objects of the cache as they were at one moment; None for one that was not there.

    Asking for an object that was not picked is an error, so a planner cannot read more than its
    snapshot holds.
    """

    picked: Mapping[Ref, Raw | None]

    def get(self, ref: Ref) -> Raw | None:
        return self.picked[ref]


class Store:
    """The newest known version of every object that is watched.

    Invariants: an object never goes back to an older version. A deletion is remembered by uid, so a
    late answer to a write does not bring a deleted object back. An object in the cache is replaced
    and never changed, so a reference to one stays what it was.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects: dict[Ref, Raw] = {}
        self._gone: dict[str, float] = {}
        self._watched: dict[Ref, int] = {}
        self._clock = clock

    def get(self, kind: str, namespace: str, name: str) -> Raw | None:
        return self._objects.get(Ref(kind, namespace, name))

    def pick(self, refs: Iterable[Ref]) -> Objects:
        """These objects as they are now."""
        return Objects({ref: self._objects.get(ref) for ref in refs})

    def put(self, obj: Raw, *, watched: bool = False) -> bool:
        """Take an object in. Returns whether it was news to the cache or, if a watch brings it, to
        the watch.

        The cache has what we wrote ourselves before the watch brings it, but it still concerns
        other objects, like the owner.
        """
        ref, version = ref_of(obj), version_of(obj)
        if Meta(obj).uid in self._gone:
            return False
        is_news = False
        if watched:
            seen = self._watched.get(ref, 0)
            is_news = version == 0 or version > seen
            self._watched[ref] = max(version, seen)
        known = self._objects.get(ref)
        if known is not None and version_of(known) >= version > 0:
            return is_news
        # A third of every object is its field managers, which the operator does not read.
        metadata = {key: value for key, value in obj["metadata"].items() if key != "managedFields"}
        self._objects[ref] = obj | {"metadata": metadata}
        return True

    def remove(self, obj: Raw) -> None:
        """Forget a deleted object, unless another one has its name by now."""
        ref, uid = ref_of(obj), Meta(obj).uid
        now = self._clock()
        self._gone = {key: at for key, at in self._gone.items() if now - at < REMEMBERED_S}
        if uid:
            self._gone[uid] = now
        known = self._objects.get(ref)
        if known is not None and Meta(known).uid == uid:
            del self._objects[ref]
            self._watched.pop(ref, None)

    def watched_version(self, ref: Ref) -> int:
        """The newest version that a watch delivered; 0 for none."""
        return self._watched.get(ref, 0)

    def of_kind(self, kind: str) -> Iterator[Raw]:
        return (obj for ref, obj in list(self._objects.items()) if ref.kind == kind)

    def nodes_of_ring(self, namespace: str, ring: str) -> list[Raw]:
        """The ExoNodes that name this ring in `spec.cluster`, by name, without those that are being
        deleted.
        """
        return self._select(
            names.KIND_NODE,
            namespace,
            lambda obj: obj.get("spec", {}).get("cluster") == ring and not Meta(obj).is_deleting,
        )

    def controlled_by(self, kind: str, namespace: str, uid: str) -> list[Raw]:
        """The objects of a kind whose controller has this uid, by name."""
        return self._select(kind, namespace, lambda obj: Meta(obj).controller_uid == uid)

    def _select(self, kind: str, namespace: str, suits: Callable[[Raw], bool]) -> list[Raw]:
        found = [
            obj for obj in self.of_kind(kind) if Meta(obj).namespace == namespace and suits(obj)
        ]
        return sorted(found, key=lambda obj: Meta(obj).name)

    def __len__(self) -> int:
        return len(self._objects)
