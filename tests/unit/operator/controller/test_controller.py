"""Which custom resources an object concerns, and the comparison with the API server."""

from __future__ import annotations

from exo_operator.api.names import Key
from exo_operator.controller.controller import Controller
from exo_operator.controller.health import Health
from exo_operator.controller.metrics import Metrics
from exo_operator.controller.reconcile import Reconciler
from exo_operator.kube.objects import Ref, owner_reference
from exo_operator.kube.store import Store

from ..builders import DEFAULTS, NOW, exonode, node_ref, pod_of
from ..fake_kube import FakeKube, FakeNodes


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
    node = exonode("ring-0", metadata={"ownerReferences": [owner_reference(exonode("ring"))]})
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
    await fed.sync()
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
    late = await fed.sync()
    assert [obj["metadata"]["name"] for obj in reconciler.store.of_kind("ExoNode")] == ["missed"]
    assert set(late) == {Ref("ExoNode", "default", "missed")}
    assert {key.name for key in queued(reconciler)} == {"gone", "missed"}
    assert health.synced


async def test_a_watch_that_stays_behind_makes_the_operator_unhealthy_until_it_catches_up() -> None:
    fed, kube, _, health = controller()
    kube.seed(exonode("missed"))
    late = await fed.sync()
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
