"""What the operator decides to do for an ExoNode."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from exo_operator.exonode import objects, plan, snapshot
from exo_operator.exonode.context import Defaults
from exo_operator.exonode.report import NodeReport
from exo_operator.exonode.snapshot import Answers
from exo_operator.kube.actions import Action, Apply, Conflict, Delete, SetGate
from exo_operator.kube.store import Store
from hypothesis import given
from hypothesis import strategies as st

from ..builders import DEFAULTS, NOW, carry_out, exonode, node_ref, planned, pod_of, snapshot_of


def kinds(actions: list[Action]) -> list[str]:
    return [
        f"{a.manifest['kind']} {a.manifest['metadata']['name']}"
        for a in actions
        if isinstance(a, Apply)
    ]


def everything(raw: dict[str, Any], **pod: Any) -> list[dict[str, Any]]:
    """A world in which all is as the node wants it."""
    node = node_ref(raw)
    return [*objects.desired(node, DEFAULTS), pod_of(node, **pod)]


def test_a_new_exonode_gets_two_services_and_a_pod_in_this_order() -> None:
    actions = planned(node_ref(exonode()))
    assert kinds(actions) == ["Service paris-ring", "Service paris", "Pod paris"]


def test_nothing_is_done_when_all_is_as_wanted() -> None:
    raw = exonode()
    assert planned(node_ref(raw), *everything(raw)) == []


def test_an_exonode_in_deletion_is_left_to_its_owner_references() -> None:
    raw = exonode(metadata={"deletionTimestamp": "2030-01-01T11:59:00Z"})
    assert planned(node_ref(raw)) == []


def test_a_pod_made_from_an_older_spec_is_deleted_with_its_own_grace() -> None:
    old, new = exonode(), exonode(spec={"model": {"name": "smollm2-135m"}, "engine": "numpy"})
    (action,) = planned(node_ref(new), *everything(old))
    assert isinstance(action, Delete)
    assert (action.kind, action.uid, action.grace, action.reason) == (
        "Pod",
        "pod-paris",
        None,
        "SpecChanged",
    )


def test_a_new_default_image_replaces_the_pod_and_one_in_the_spec_does_not() -> None:
    upgraded = Defaults(image="registry.test/exo-node:2", operator_namespace="exo-system")
    raw = exonode()
    assert [type(a) for a in planned(node_ref(raw), *everything(raw), defaults=upgraded)] == [
        Delete
    ]
    pinned = exonode(spec={"model": {"name": "smollm2-135m"}, "image": "mine:1"})
    assert planned(node_ref(pinned), *everything(pinned), defaults=upgraded) == []


def test_a_pod_that_ended_is_deleted_so_that_its_name_is_free() -> None:
    raw = exonode()
    (action,) = planned(node_ref(raw), *everything(raw, phase="Failed"))
    assert isinstance(action, Delete)
    assert action.reason == "PodFinished"


@pytest.mark.parametrize(
    ("ended", "forced"),
    [
        ("2030-01-01T12:00:30Z", False),
        ("2030-01-01T11:59:50Z", False),
        ("2030-01-01T11:59:40Z", True),
    ],
)
def test_a_stuck_pod_is_forced_only_well_after_its_grace(ended: str, forced: bool) -> None:
    raw = exonode()
    world = everything(raw)
    world[-1]["metadata"]["deletionTimestamp"] = ended
    actions = planned(node_ref(raw), *world)
    assert [a.grace for a in actions if isinstance(a, Delete)] == ([0] if forced else [])
    assert kinds(actions) == []


def test_suspend_takes_the_pod_away_and_keeps_the_services() -> None:
    raw = exonode(spec={"model": {"name": "smollm2-135m"}, "suspend": True})
    running = everything(exonode())
    (action,) = planned(node_ref(raw), *running)
    assert isinstance(action, Delete)
    assert action.reason == "Suspended"
    assert planned(node_ref(raw), *running[:-1]) == []


def test_a_service_that_somebody_edited_is_put_right() -> None:
    raw = exonode()
    world = everything(raw)
    world[1] = copy.deepcopy(world[1])
    world[1]["spec"]["selector"] = {"app": "elsewhere"}
    assert kinds(planned(node_ref(raw), *world)) == ["Service paris"]


def test_what_others_add_to_a_service_stays() -> None:
    raw = exonode()
    world = everything(raw)
    world[1] = copy.deepcopy(world[1])
    world[1]["metadata"]["annotations"] = {"mesh.test/on": "yes"}
    world[1]["spec"]["clusterIP"] = "10.1.2.3"
    world[1]["spec"]["ports"][0]["nodePort"] = 30000
    assert planned(node_ref(raw), *world) == []


def test_a_service_of_another_owner_is_never_touched() -> None:
    raw = exonode()
    world = everything(raw)
    world[1] = copy.deepcopy(world[1])
    world[1]["metadata"]["ownerReferences"][0]["uid"] = "somebody-else"
    world[1]["spec"]["selector"] = {"app": "theirs"}
    assert planned(node_ref(raw), *world) == []
    assert snapshot_of(node_ref(raw), *world).conflicts == (Conflict("Service", "paris"),)


def test_the_policy_comes_and_goes_with_the_option() -> None:
    on = exonode(spec={"model": {"name": "smollm2-135m"}, "networkPolicy": {"enabled": True}})
    off = exonode()
    assert kinds(planned(node_ref(on), *everything(off))) == ["NetworkPolicy paris"]
    world = everything(on)
    for obj in world:
        obj["metadata"].setdefault("uid", "u")
    (action,) = planned(node_ref(off), *world)
    assert isinstance(action, Delete)
    assert action.kind == "NetworkPolicy"


def in_cluster(name: str = "ring-0") -> dict[str, Any]:
    return exonode(name, spec={"model": {"name": "smollm2-135m"}, "cluster": "ring"})


@pytest.mark.parametrize(("formed", "expected"), [(True, [True]), (False, [False]), (None, [])])
def test_the_gate_follows_what_the_node_says_of_its_ring(
    formed: bool | None, expected: list[bool]
) -> None:
    raw = in_cluster()
    report = NodeReport(reachable=True, ring_formed=formed, ring_epoch="7")
    actions = planned(node_ref(raw), *everything(raw), report=report)
    assert [a.ready for a in actions if isinstance(a, SetGate)] == expected


def test_an_open_gate_closes_only_when_the_ring_has_been_gone_for_a_while() -> None:
    raw = in_cluster()
    world = everything(raw)
    world[-1]["status"]["conditions"].append({"type": "exo.dev/ring-formed", "status": "True"})
    report = NodeReport(reachable=True, ring_formed=False)
    for seconds, expected in ((0.0, []), (7.9, []), (8.0, [False])):
        actions = planned(node_ref(raw), *world, report=report, unformed_s=seconds)
        assert [a.ready for a in actions if isinstance(a, SetGate)] == expected


def test_a_node_that_does_not_answer_leaves_its_gate_as_it_is() -> None:
    raw = in_cluster()
    report = NodeReport(reachable=False, ring_formed=False)
    assert planned(node_ref(raw), *everything(raw), report=report) == []


def test_a_new_member_becomes_an_owner_of_the_shared_service() -> None:
    first, second = in_cluster("ring-0"), in_cluster("ring-1")
    world = everything(first)
    node = node_ref(first, [first, second])
    (action,) = planned(node, *world)
    assert isinstance(action, Apply)
    owners = action.manifest["metadata"]["ownerReferences"]
    assert [(o["name"], o["controller"]) for o in owners] == [("ring-0", False), ("ring-1", False)]


names_st = st.sampled_from(["a", "paris", "node-7"])
specs = st.fixed_dictionaries(
    {
        "model": st.sampled_from(
            [{"name": "smollm2-135m"}, {"path": "/m/x.gguf"}, {"hf": "o/r", "revision": "main"}]
        )
    },
    optional={
        "engine": st.sampled_from(["auto", "onnx", "numpy"]),
        "cluster": st.sampled_from(["", "ring"]),
        "suspend": st.booleans(),
        "storage": st.sampled_from([{}, {"size": "1Gi"}, {"existingClaim": "mine"}]),
        "networkPolicy": st.sampled_from([{}, {"enabled": True}, {"enabled": False}]),
        "probes": st.sampled_from([{}, {"protocol": "GRPC"}]),
        "extraEnv": st.just([{"name": "A", "value": "b"}]),
        "tls": st.sampled_from([{}, {"secretName": "certs"}]),
    },
)


@given(name=names_st, spec=specs, before=st.none() | specs, formed=st.none() | st.booleans())
def test_carrying_a_plan_out_a_few_times_leaves_nothing_to_do(
    name: str, spec: dict[str, Any], before: dict[str, Any] | None, formed: bool | None
) -> None:
    store = Store()
    raw = exonode(name, spec=spec)
    report = NodeReport(reachable=True, ring_formed=formed)
    if before is not None:
        earlier = node_ref(exonode(name, spec=before))
        for manifest in objects.desired(earlier, DEFAULTS):
            store.put(
                copy.deepcopy(manifest)
                | {"metadata": manifest["metadata"] | {"uid": manifest["kind"]}}
            )
        store.put(pod_of(earlier))

    def decide() -> list[Action]:
        node = node_ref(raw)
        answers = Answers(report=report)
        seen = snapshot.take(store, node, DEFAULTS, now=NOW, answers=answers)
        return plan.plan(node, seen, DEFAULTS)

    for _ in range(3):
        actions = decide()
        carry_out(actions, store)
        pod = store.get("Pod", "default", name)
        if pod is not None and "phase" not in pod.get("status", {}):
            store.put(pod_of(node_ref(raw)))
    assert decide() == []
    assert (store.get("Pod", "default", name) is None) == raw["spec"].get("suspend", False)
