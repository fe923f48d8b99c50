"""The secret that the nodes of a ring share: who gets it, when it is made, whose it is, and that
nobody sees it.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.api.template import SecretKey
from exo_operator.exonode import objects
from exo_operator.exonode import secret as secrets
from exo_operator.exonode.context import NodeRef
from exo_operator.kube.actions import Action, Apply, MakeSecret
from exo_operator.kube.client import KubeError
from exo_operator.kube.objects import Raw
from structlog.testing import capture_logs

from ..builders import DEFAULTS, container, exonode, node_ref, planned, pod_of
from ..world import BUNDLED, World

OURS = SecretKey(name="ring-ring", key="secret")
CLUSTER = {
    "apiVersion": names.API_VERSION,
    "kind": "ExoCluster",
    "name": "ring",
    "uid": "u1",
    "controller": True,
}


def member(name: str, **spec: Any) -> dict[str, Any]:
    return exonode(name, {"model": {"name": "smollm2-135m"}, "cluster": "ring", **spec})


def ring_of(*members: dict[str, Any]) -> list[NodeRef]:
    return [node_ref(each, list(members)) for each in members]


def pod(node: NodeRef, secret: SecretKey | None, **metadata: Any) -> Raw:
    made = pod_of(node, secret=secret)
    made["metadata"] |= metadata
    return made


def secret_of(action: Action) -> Any:
    assert isinstance(action, Apply)
    env = action.manifest["spec"]["containers"][0]["env"]
    return next((each for each in env if each["name"] == "EXO_SECRET"), None)


def test_the_first_pod_of_a_ring_comes_after_the_secret_that_it_reads() -> None:
    one, _ = ring_of(member("one"), member("two"))
    *_, make, apply = planned(one)
    assert isinstance(make, MakeSecret)
    assert (make.name, make.namespace, make.labels["exo.dev/cluster"]) == (
        "ring-ring",
        "default",
        "ring",
    )
    assert secret_of(apply) == {
        "name": "EXO_SECRET",
        "valueFrom": {"secretKeyRef": {"name": "ring-ring", "key": "secret"}},
    }


def test_a_lone_node_has_a_secret_of_its_own() -> None:
    *_, make, apply = planned(node_ref(exonode()))
    assert isinstance(make, MakeSecret)
    assert secret_of(apply)["valueFrom"]["secretKeyRef"]["name"] == make.name == "paris-ring"


@pytest.mark.parametrize(
    ("held", "metadata", "status", "gets_it"),
    [
        (OURS, {}, {}, True),
        # Made before there were secrets: with and without would refuse each other.
        (None, {}, {}, False),
        (SecretKey(name="mine", key="k"), {}, {}, False),
        (None, {"deletionTimestamp": "2030-01-01T11:59:00Z"}, {}, True),
        (None, {}, {"phase": "Failed"}, True),
    ],
)
def test_a_pod_is_made_as_the_others_of_its_ring_are(
    held: SecretKey | None, metadata: dict[str, Any], status: dict[str, Any], gets_it: bool
) -> None:
    one, two = ring_of(member("one"), member("two"))
    other = pod(two, held, **metadata)
    other["status"] |= status
    actions = planned(one, other)
    assert any(isinstance(action, MakeSecret) for action in actions) == gets_it
    assert (secret_of(actions[-1]) is not None) == gets_it


def test_no_pod_is_replaced_to_have_a_secret() -> None:
    (node,) = ring_of(member("one"))
    world = [*objects.desired(node, DEFAULTS), pod(node, None)]
    assert planned(node, *world) == []
    assert planned(node, *world[:-1], pod(node, OURS)) == []


@pytest.mark.parametrize(
    "spec",
    [
        {"auth": {"ringSecretRef": {"name": "mine"}}},
        {"extraEnv": [{"name": "EXO_SECRET", "value": "theirs"}]},
    ],
)
def test_a_secret_of_the_user_is_taken_and_none_is_made(spec: dict[str, Any]) -> None:
    (node,) = ring_of(member("one", **spec))
    actions = planned(node)
    assert not [action for action in actions if isinstance(action, MakeSecret)]
    given = secret_of(actions[-1])
    assert given in (
        {"name": "EXO_SECRET", "valueFrom": {"secretKeyRef": {"name": "mine", "key": "secret"}}},
        {"name": "EXO_SECRET", "value": "theirs"},
    )


def test_a_secret_that_was_taken_away_is_made_again_for_a_pod_that_waits_for_it() -> None:
    (node,) = ring_of(member("one"))
    waiting = container(
        state={"waiting": {"reason": secrets.MISSING, "message": 'secret "ring-ring" not found'}}
    )
    live = pod(node, OURS)
    live["status"]["containerStatuses"] = waiting
    (action,) = planned(node, *objects.desired(node, DEFAULTS), live)
    assert isinstance(action, MakeSecret)
    live = pod(node, None)
    live["status"]["containerStatuses"] = waiting  # for a Secret of somebody else's
    assert planned(node, *objects.desired(node, DEFAULTS), live) == []


def test_the_secret_of_an_exocluster_is_the_clusters_and_outlives_its_nodes() -> None:
    raw = member("one")
    raw["metadata"]["ownerReferences"] = [CLUSTER]
    owner = secrets.make(node_ref(raw)).owner
    assert owner is not None
    assert (owner["kind"], owner["uid"], owner["controller"]) == ("ExoCluster", "u1", False)


# -- against an API server in memory ---------------------------------------------------------------


async def share(world: World) -> Raw:
    for name in ("one", "two"):
        world.make("ExoNode", name, {**BUNDLED, "cluster": "ring"})
    await world.settle()
    return world.live("Secret", "ring-ring")


async def test_nodes_of_a_ring_share_one_secret_and_no_reconcile_changes_it() -> None:
    world = World()
    secret = await share(world)
    assert world.kube.writes.count("create Secret ring-ring") == 1
    assert len(secret["stringData"]["secret"]) >= 40
    assert (secret["immutable"], secret["type"]) == (True, "Opaque")
    again = World(world.kube)
    await again.settle(3)
    world.kube.collect(
        next(ref for ref in world.kube.objects if (ref.kind, ref.name) == ("Pod", "one"))
    )
    await again.settle()
    assert again.live("Secret", "ring-ring") == secret
    assert again.has("Pod", "one")


async def test_the_secret_of_standalone_nodes_goes_with_the_last_of_them() -> None:
    world = World()
    secret = await share(world)
    (owner,) = secret["metadata"]["ownerReferences"]
    service = world.live("Service", "ring-ring")
    assert (owner["kind"], owner["uid"], owner["controller"]) == (
        "Service",
        service["metadata"]["uid"],
        False,
    )
    assert len(service["metadata"]["ownerReferences"]) == 2


async def test_its_value_is_in_no_log_no_event_no_cache_and_no_other_object() -> None:
    world = World()
    with capture_logs() as logs:
        secret = await share(world)
    value = secret["stringData"]["secret"]
    others = [obj for ref, obj in world.kube.objects.items() if ref.kind != "Secret"]
    assert value not in json.dumps([logs, others, world.kube.events], default=str)
    assert list(world.store.of_kind("Secret")) == []


async def test_two_rings_have_two_secrets() -> None:
    world = World()
    for name in ("one", "two"):
        world.make("ExoNode", name, BUNDLED)
    await world.settle()
    values = {
        world.live("Secret", f"{name}-ring")["stringData"]["secret"] for name in ("one", "two")
    }
    assert len(values) == 2


async def test_an_operator_that_may_not_make_secrets_says_so_and_makes_no_open_pod() -> None:
    world = World()
    world.kube.refuse["Secret"] = KubeError(
        403, 'secrets is forbidden: cannot create resource "secrets"'
    )
    key = world.make("ExoNode", "paris", BUNDLED)
    await world.settle()
    assert not world.has("Pod", "paris")
    condition = next(
        c for c in world.live("ExoNode", "paris")["status"]["conditions"] if c["type"] == "Ready"
    )
    assert 'cannot create resource "secrets"' in condition["message"]
    world.kube.refuse.clear()
    await world.settle()
    assert world.has("Pod", "paris")
    assert key.name == "paris"
