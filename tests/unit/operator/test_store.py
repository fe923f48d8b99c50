"""The cache: newest wins, deletions hold, and what concerns whom."""

from __future__ import annotations

from typing import Any

from exo_operator.api import names
from exo_operator.api.names import Key
from exo_operator.controller.controller import Controller
from exo_operator.controller.metrics import Health, Metrics
from exo_operator.controller.reconcile import Reconciler
from exo_operator.kube.store import Ref, Store
from hypothesis import given
from hypothesis import strategies as st

from .builders import DEFAULTS, NOW, exonode, node_ref, pod_of
from .fake_kube import FakeKube, FakeNodes


def service(version: int, uid: str = "u1") -> dict[str, Any]:
    metadata = {"name": "s", "namespace": "default", "uid": uid, "resourceVersion": str(version)}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"version": version},
    }


def spec(store: Store) -> Any:
    live = store.get("Service", "default", "s")
    return live and live["spec"]["version"]


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    assert store.put(service(10))
    assert not store.put(service(9))
    assert not store.put(service(10))
    assert store.put(service(11))
    assert spec(store) == 11


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    store = Store()
    store.put(service(10))
    store.remove(service(12))
    assert not store.put(service(11))
    assert spec(store) is None
    assert store.put(service(13, uid="u2"))


def test_the_deletion_of_an_earlier_object_leaves_its_namesake() -> None:
    store = Store()
    store.put(service(20, uid="u2"))
    store.remove(service(15, uid="u1"))
    assert spec(store) == 20


def test_deletions_are_remembered_for_a_while_only() -> None:
    now = [0.0]
    store = Store(clock=lambda: now[0])
    for number in range(100):
        now[0] = number * 100.0
        store.remove(service(number, uid=f"u{number}"))
    assert store.put(service(1, uid="u0"))
    assert not store.put(service(1, uid="u99"))


def test_what_we_wrote_is_still_news_when_the_watch_brings_it_once() -> None:
    store = Store()
    store.put(service(10))
    assert store.put(service(10), watched=True)
    assert not store.put(service(10), watched=True)
    assert not store.put(service(9), watched=True)


@given(st.lists(st.integers(1, 50), max_size=30))
def test_whatever_the_order_the_newest_stays(versions: list[int]) -> None:
    store = Store()
    for version in versions:
        store.put(service(version))
    assert spec(store) == (max(versions) if versions else None)


def test_field_managers_are_not_kept() -> None:
    store = Store()
    fat = service(1)
    fat["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.put(fat)
    live = store.get("Service", "default", "s")
    assert live is not None
    assert "managedFields" not in live["metadata"]
    assert "managedFields" in fat["metadata"]


def controller() -> tuple[Controller, FakeKube, Reconciler, Health]:
    kube = FakeKube()
    reconciler = Reconciler(
        kube,  # type: ignore[arg-type]
        Store(),
        FakeNodes(),  # type: ignore[arg-type]
        DEFAULTS,
        Metrics(),
        now=lambda: NOW,
    )
    health = Health()
    return Controller(reconciler, health), kube, reconciler, health


def queued(reconciler: Reconciler) -> set[Key]:
    found = set()
    while (key := reconciler.queue.take_nowait()) is not None:
        reconciler.queue.done(key)
        found.add(key)
    return found


def test_a_pod_wakes_its_exonode_and_a_foreign_owner_wakes_nobody() -> None:
    fed, _, reconciler, _ = controller()
    pod = pod_of(node_ref(exonode()))
    fed.seen(pod)
    assert queued(reconciler) == {Key("ExoNode", "default", "paris")}
    pod["metadata"]["ownerReferences"][0]["apiVersion"] = "apps/v1"
    pod["metadata"]["resourceVersion"] = "999999"
    fed.seen(pod)
    assert queued(reconciler) == set()


def test_a_status_wakes_the_owner_and_not_the_object_itself() -> None:
    fed, _, reconciler, _ = controller()
    node = exonode("ring-0", metadata={"ownerReferences": [names.owner_reference(exonode("ring"))]})
    node["metadata"]["ownerReferences"][0]["kind"] = "ExoCluster"
    fed.seen(node)
    owner = Key("ExoCluster", "default", "ring")
    assert queued(reconciler) == {owner, Key("ExoNode", "default", "ring-0")}
    later = node | {"status": {"conditions": []}}
    later["metadata"] = node["metadata"] | {"resourceVersion": "777777"}
    fed.seen(later)
    assert queued(reconciler) == {owner}
    changed = later | {
        "metadata": later["metadata"] | {"resourceVersion": "777778", "generation": 4}
    }
    fed.seen(changed)
    assert queued(reconciler) == {owner, Key("ExoNode", "default", "ring-0")}


def test_a_child_that_we_made_is_looked_at_when_the_watch_first_shows_it() -> None:
    fed, _, reconciler, _ = controller()
    child = exonode("ring-0")
    reconciler.store.put(child)
    fed.seen(child)
    assert queued(reconciler) == {Key("ExoNode", "default", "ring-0")}


async def test_a_resync_does_not_cut_a_back_off_short() -> None:
    fed, kube, reconciler, _ = controller()
    kube.seed(exonode("poison"))
    kube.seed(exonode("good"))
    reconciler.backoff.failed(Key("ExoNode", "default", "poison"))
    await fed.prime()
    assert queued(reconciler) == {Key("ExoNode", "default", "good")}


def test_a_new_member_wakes_the_whole_ring() -> None:
    fed, _, reconciler, _ = controller()
    in_ring = {"model": {"name": "smollm2-135m"}, "cluster": "ring"}
    fed.seen(exonode("a", spec=in_ring, status={"conditions": []}))
    queued(reconciler)
    fed.seen(exonode("b", spec=in_ring))
    assert queued(reconciler) == {Key("ExoNode", "default", "a"), Key("ExoNode", "default", "b")}


async def test_a_resync_takes_in_what_a_watch_missed_and_forgets_what_is_gone() -> None:
    fed, kube, reconciler, health = controller()
    reconciler.store.put(exonode("gone"))
    kube.seed(exonode("missed"))
    late = await fed.prime()
    assert [obj["metadata"]["name"] for obj in reconciler.store.of_kind("ExoNode")] == ["missed"]
    assert set(late) == {Ref("ExoNode", "default", "missed")}
    assert {key.name for key in queued(reconciler)} == {"gone", "missed"}
    assert health.synced


async def test_a_watch_that_stays_behind_makes_the_operator_unhealthy_until_it_catches_up() -> None:
    fed, kube, _, health = controller()
    kube.seed(exonode("missed"))
    late = await fed.prime()
    fed._judge_watches(late)
    assert "missed" in health.reasons()["watch"]
    fed.seen(kube.objects[Ref("ExoNode", "default", "missed")])
    fed._judge_watches(late)
    assert health.reasons() == {}


def test_a_loop_that_stands_still_makes_the_operator_unhealthy() -> None:
    now = [0.0]
    health = Health(clock=lambda: now[0])
    assert health.reasons() == {}
    now[0] = 30.0
    assert "30 s" in health.reasons()["loop"]


def test_names_fit_into_what_kubernetes_allows() -> None:
    longest = "a" * names.MAX_CLUSTER_NAME
    assert len(names.child_node(longest, 999)) <= names.MAX_NAME
    assert len(names.ring_service("a" * names.MAX_NAME)) <= 63
    assert len(names.cache_claim("a" * names.MAX_NAME)) <= 63
