"""The manifests of an ExoNode."""

from __future__ import annotations

from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.exonode import objects
from exo_operator.exonode import pod as pods
from exo_operator.exonode.context import Defaults
from hypothesis import given
from hypothesis import strategies as st

from exo import contract

from ..builders import DEFAULTS, exonode, node_ref

BUNDLED = {"model": {"name": "smollm2-135m"}}


def pod(**spec: Any) -> dict[str, Any]:
    return pods.pod(node_ref(exonode(spec=BUNDLED | spec)), DEFAULTS)


def container(**spec: Any) -> dict[str, Any]:
    found: dict[str, Any] = pod(**spec)["spec"]["containers"][0]
    return found


def environment(**spec: Any) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container(**spec)["env"]}


options = st.fixed_dictionaries(
    {},
    optional={
        "cluster": st.just("ring"),
        "tls": st.just({"secretName": "certs"}),
        "storage": st.sampled_from([{"size": "1Gi"}, {"existingClaim": "mine"}]),
        "probes": st.just({"protocol": "GRPC"}),
        "scheduling": st.just({"affinity": {}, "nodeSelector": {"disk": "fast"}}),
        "extraEnv": st.just([{"name": "A", "value": "b"}]),
    },
)
POD_STORAGE = {"persistentVolumeClaim", "projected", "secret"}
ALLOWED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"} | POD_STORAGE


@given(options)
def test_every_pod_meets_the_restricted_pod_security_standard(spec: dict[str, Any]) -> None:
    made = pod(**spec)["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(made)
    assert made["securityContext"]["runAsNonRoot"] is True
    assert made["securityContext"]["runAsUser"] > 0
    assert made["automountServiceAccountToken"] is False
    assert made["enableServiceLinks"] is False
    for volume in made["volumes"]:
        assert set(volume) - {"name"} <= ALLOWED_VOLUMES
    for each in made["containers"]:
        security = each["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert all("hostPort" not in port for port in each["ports"])
        assert each["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in each["resources"]["limits"]


@given(options)
def test_the_pod_writes_only_where_a_volume_is(spec: dict[str, Any]) -> None:
    made = pod(**spec)["spec"]
    volumes = {volume["name"] for volume in made["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in made["containers"][0]["volumeMounts"]}
    assert {"/tmp", contract.CACHE_DIR} <= set(mounts)
    assert set(mounts.values()) == volumes


def test_a_lone_node_gets_its_settings_and_looks_for_no_peers() -> None:
    env = environment()
    assert env["EXO_NODE_ID"] == "paris"
    assert env["EXO_MODEL"] == "smollm2-135m"
    assert env["EXO_DISCOVERY"] == "none"
    assert env["EXO_DRAIN_SECONDS"] == "30"
    assert "EXO_CLUSTER" not in env
    assert "readinessGates" not in pod()["spec"]


def test_a_node_of_a_ring_finds_its_peers_by_the_headless_service_and_has_the_gate() -> None:
    env = environment(cluster="ring")
    assert (env["EXO_DISCOVERY"], env["EXO_CLUSTER"]) == ("dns", "ring")
    assert env["EXO_DISCOVERY_NAME"] == "ring-ring.default.svc"
    made = pod(cluster="ring")
    assert made["spec"]["readinessGates"] == [{"conditionType": contract.RING_FORMED_GATE}]
    assert (made["spec"]["hostname"], made["spec"]["subdomain"]) == ("paris", "ring-ring")
    assert made["metadata"]["labels"][contract.LABEL_CLUSTER] == "ring"
    assert made["spec"]["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_discovery_none_keeps_a_node_of_a_cluster_alone() -> None:
    assert environment(cluster="ring", discovery={"mode": "none"})["EXO_DISCOVERY"] == "none"


def test_settings_of_the_operator_win_over_extra_environment() -> None:
    env = environment(
        extraEnv=[{"name": "EXO_NODE_ID", "value": "mallory"}, {"name": "OTHER", "value": "1"}]
    )
    assert (env["EXO_NODE_ID"], env["OTHER"]) == ("paris", "1")


def test_options_reach_the_node() -> None:
    env = environment(
        memoryMiB=900,
        layers={"start": 3, "end": 9},
        tls={"secretName": "certs"},
        auth={"apiKeySecretRef": {"name": "keys"}},
        engine="numpy",
    )
    assert env["EXO_MEMORY"] == "900"
    assert env["EXO_LAYERS"] == "3-9"
    assert env["EXO_TLS_DIR"] == pods.TLS_DIR
    assert env["EXO_ENGINE"] == "numpy"
    assert env["EXO_API_KEY"] == {"secretKeyRef": {"name": "keys", "key": "api-key"}}


@pytest.mark.parametrize(
    ("model", "argument"),
    [
        ({"name": "smollm2-135m"}, "smollm2-135m"),
        ({"path": "/models/x.gguf"}, "/models/x.gguf"),
        ({"hf": "owner/repo", "revision": "v2"}, "hf:owner/repo"),
    ],
)
def test_the_three_ways_to_name_a_model(model: dict[str, str], argument: str) -> None:
    env = environment(model=model)
    assert env["EXO_MODEL"] == argument
    assert env.get("EXO_HUB_REVISION") == model.get("revision")


def test_http_probes_ask_the_three_paths() -> None:
    made = container()
    paths = {
        name: made[f"{name}Probe"]["httpGet"]["path"]
        for name in ("startup", "readiness", "liveness")
    }
    assert paths == {"startup": "/startupz", "readiness": "/readyz", "liveness": "/livez"}


def test_grpc_probes_ask_the_three_services_on_the_health_port() -> None:
    made = container(probes={"protocol": "GRPC"})
    asked = {name: made[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")}
    assert {name: each["service"] for name, each in asked.items()} == {
        "startup": "started",
        "readiness": "ready",
        "liveness": "live",
    }
    assert {each["port"] for each in asked.values()} == {50052}


def test_a_pod_is_not_ready_within_ten_seconds_of_the_first_bad_answer() -> None:
    for cluster in ("", "ring"):
        probe = container(cluster=cluster)["readinessProbe"]
        assert probe["periodSeconds"] * probe["failureThreshold"] < 10


def test_a_hung_node_need_not_be_given_time_to_drain() -> None:
    made = pod()["spec"]
    probe = made["containers"][0]["livenessProbe"]
    assert probe["terminationGracePeriodSeconds"] < made["terminationGracePeriodSeconds"]


@pytest.mark.parametrize(
    ("model", "seconds"),
    [
        ({"name": "smollm2-135m"}, 145),
        ({"path": "/m", "sizeMiB": 4000}, 1120),
        ({"hf": "o/r", "sizeMiB": 4000}, 2120),
    ],
)
def test_a_larger_model_gets_more_time_to_start(model: dict[str, Any], seconds: int) -> None:
    probe = container(model=model)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == seconds


def test_the_grace_period_holds_the_pause_the_drain_and_the_cleanup() -> None:
    made = pod(termination={"drainSeconds": 100, "preStopSeconds": 5})["spec"]
    assert made["terminationGracePeriodSeconds"] == 115
    assert made["containers"][0]["lifecycle"] == {"preStop": {"sleep": {"seconds": 5}}}
    assert "lifecycle" not in container(termination={"preStopSeconds": 0})


def test_the_hash_moves_with_what_the_pod_is_made_from_and_with_nothing_else() -> None:
    def of(image: str = "image:1", **spec: Any) -> str:
        return pods.spec_hash(node_ref(exonode(spec=BUNDLED | spec)), Defaults(image=image))

    assert of() == of(
        engine="auto", suspend=True, networkPolicy={"enabled": True}, probes={"protocol": "HTTP"}
    )
    assert len({of(), of(engine="onnx"), of(memoryMiB=5), of(extraEnv=[{"name": "A"}])}) == 4
    assert of() != of(image="image:2")


def test_all_objects_of_a_node_are_owned_by_it_and_do_not_hold_up_its_deletion() -> None:
    node = node_ref(
        exonode(spec=BUNDLED | {"storage": {"size": "1Gi"}, "networkPolicy": {"enabled": True}})
    )
    made = [
        objects.api_service(node),
        objects.ring_service(node),
        objects.cache_claim(node),
        objects.network_policy(node, DEFAULTS),
        pods.pod(node, DEFAULTS),
    ]
    for manifest in made:
        assert manifest is not None
        (owner,) = manifest["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["controller"], owner["blockOwnerDeletion"]) == (
            "uid-paris",
            True,
            False,
        )
        assert manifest["metadata"]["labels"][names.LABEL_MANAGED_BY] == names.MANAGED_BY


def test_the_policy_lets_members_to_the_ring_port_and_everyone_to_the_api() -> None:
    raw = exonode(spec=BUNDLED | {"cluster": "ring", "networkPolicy": {"enabled": True}})
    policy = objects.network_policy(node_ref(raw), DEFAULTS)
    assert policy is not None
    api, ring = policy["spec"]["ingress"]
    assert [port["port"] for port in api["ports"]] == [contract.API_PORT]
    assert "from" not in api
    assert [port["port"] for port in ring["ports"]] == [contract.GRPC_PORT]
    assert ring["from"] == [{"podSelector": {"matchLabels": {contract.LABEL_CLUSTER: "ring"}}}]


def test_an_api_that_is_kept_to_some_still_lets_the_operator_and_the_peers_in() -> None:
    only = {"podSelector": {"matchLabels": {"app": "web"}}}
    raw = exonode(spec=BUNDLED | {"networkPolicy": {"enabled": True, "apiFrom": [only]}})
    policy = objects.network_policy(node_ref(raw), DEFAULTS)
    assert policy is not None
    allowed = policy["spec"]["ingress"][0]["from"]
    assert allowed[0] == only
    assert {"podSelector": {"matchLabels": {contract.LABEL_NODE: "paris"}}} in allowed
    assert any("namespaceSelector" in each for each in allowed)
