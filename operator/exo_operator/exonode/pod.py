"""The pod of an ExoNode: container, probes, security, volumes, placement. Pure.

It meets every point of the restricted Pod Security Standard, whatever the spec says.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Final

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ExoNodeSpec, ModelRef
from exo_operator.api.template import SecretKey
from exo_operator.exonode.context import Defaults, NodeRef
from exo_operator.kube.objects import Raw, owner_reference

# The numeric user of the node image.
USER_ID: Final = 65532
# To be raised when a change of this file must replace every running pod. An upgrade of the operator
# alone restarts nothing.
TEMPLATE: Final = 1
CONTAINER: Final = "node"
TLS_DIR: Final = "/etc/exo/tls"
# Time that the cleanup after a drain gets.
CLEANUP_SECONDS: Final = 10
# Grace period of a node whose liveness probe fails.
HUNG_GRACE_SECONDS: Final = 5
# A node on a machine that died is evicted after this long; Kubernetes' own default is 5 minutes.
LOST_MACHINE_SECONDS: Final = 10
# Sizes in MiB of the bundled models, and of a model whose size nothing tells.
BUNDLED_SIZES_MIB: Final = {contract.DEFAULT_MODEL: 100}
UNKNOWN_SIZE_MIB: Final = 8192


def pod(node: NodeRef, defaults: Defaults, secret: SecretKey | None = None) -> Raw:
    """The node's pod. Its name, its host name and its place in the headless Service survive
    replacements.

    `secret` is what the nodes of its ring share. It does not count in the hash, so no pod is
    replaced to get one.
    """
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": node.name,
            "namespace": node.namespace,
            "labels": node.pod_labels,
            "annotations": _annotations(node, defaults),
            "ownerReferences": [owner_reference(node.raw)],
        },
        "spec": {
            "hostname": node.name,
            "subdomain": names.ring_service(node.ring),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": grace_seconds(node.spec),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": _pod_security(),
            "containers": [_container(node, node.image(defaults), secret)],
            "volumes": _volumes(node),
            **_placement(node),
            **_readiness_gates(node),
        },
    }


def spec_hash(node: NodeRef, defaults: Defaults) -> str:
    """Hash of everything that the pod is made from.

    Fields at their defaults do not count, so an upgraded CRD with more fields replaces no pod.
    """
    wanted = node.spec.model_dump(
        by_alias=True, exclude_defaults=True, exclude={"suspend", "network_policy"}, mode="json"
    )
    content = json.dumps([TEMPLATE, node.image(defaults), wanted], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def startup_seconds(spec: ExoNodeSpec) -> int:
    """Time allowed for starting: 120 s, and more for a large model (4 MiB/s to load, 2 MiB/s to
    download and load).
    """
    if spec.probes.startup_seconds is not None:
        return spec.probes.startup_seconds
    model = spec.model
    size = model.size_mib or BUNDLED_SIZES_MIB.get(model.name or "", UNKNOWN_SIZE_MIB)
    speed = 2 if model.hf else 4
    return 120 + math.ceil(size / speed)


def grace_seconds(spec: ExoNodeSpec) -> int:
    """`terminationGracePeriodSeconds`: room for the pause, the drain and the cleanup."""
    termination = spec.termination
    computed = termination.pre_stop_seconds + termination.drain_seconds + CLEANUP_SECONDS
    return termination.grace_period_seconds or computed


def _annotations(node: NodeRef, defaults: Defaults) -> dict[str, str]:
    return {
        names.ANNOTATION_SPEC_HASH: spec_hash(node, defaults),
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(contract.API_PORT),
        "prometheus.io/path": contract.METRICS_PATH,
    }


def _pod_security() -> Raw:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _readiness_gates(node: NodeRef) -> Raw:
    if not node.has_peers:
        return {}
    return {"readinessGates": [{"conditionType": contract.RING_FORMED_GATE}]}


def _container(node: NodeRef, image: str, secret: SecretKey | None) -> Raw:
    spec = node.spec
    ports = {"http": contract.API_PORT, "grpc": contract.GRPC_PORT, "health": contract.HEALTH_PORT}
    return {
        "name": CONTAINER,
        "image": image,
        "imagePullPolicy": spec.image_pull_policy,
        "args": ["serve"],
        "env": _environment(node, secret),
        "ports": [{"name": k, "containerPort": v, "protocol": "TCP"} for k, v in ports.items()],
        "resources": spec.resources.model_dump(),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": _mounts(node),
        **_probes(node),
        **_lifecycle(spec),
    }


def _environment(node: NodeRef, ring_secret: SecretKey | None) -> list[Raw]:
    """The operator's settings win over `spec.extraEnv`."""
    variables: list[Raw] = [
        {"name": contract.env_name(setting), "value": value}
        for setting, value in _settings(node).items()
    ]
    variables.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    secrets = {"api-key": node.spec.auth.api_key_secret_ref, "secret": ring_secret}
    for setting, secret in secrets.items():
        if secret is not None:
            reference = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
            variables.append({"name": contract.env_name(setting), "valueFrom": reference})
    taken = {variable["name"] for variable in variables}
    extra = [each for each in node.spec.extra_env if each.name not in taken]
    return [*variables, *({"name": each.name, "value": each.value} for each in extra)]


def _settings(node: NodeRef) -> dict[str, str]:
    """The settings of the node that are environment variables with a plain value."""
    spec = node.spec
    discovery: contract.DiscoveryName = "dns" if node.has_peers else "none"
    settings = {
        "node-id": node.name,
        "model": _model_argument(spec.model),
        "engine": spec.engine,
        "host": "0.0.0.0",
        "api-port": str(contract.API_PORT),
        "grpc-port": str(contract.GRPC_PORT),
        "health-port": str(contract.HEALTH_PORT),
        "discovery": discovery,
        "drain-seconds": str(spec.termination.drain_seconds),
        "log-format": "json",
    }
    if node.has_peers:
        settings["cluster"] = spec.cluster
        settings["discovery-name"] = names.ring_host(node.ring, node.namespace)
    if spec.model.revision is not None:
        settings["hub-revision"] = spec.model.revision
    if spec.memory_mib is not None:
        settings["memory"] = str(spec.memory_mib)
    if spec.layers is not None:
        settings["layers"] = f"{spec.layers.start}-{spec.layers.end}"
    if spec.tls.secret_name:
        settings["tls-dir"] = TLS_DIR
    return settings


def _model_argument(model: ModelRef) -> str:
    """The value of `--model`: NAME, PATH or hf:REPO."""
    if model.hf is not None:
        return f"hf:{model.hf}"
    return model.path or model.name or contract.DEFAULT_MODEL


def _probes(node: NodeRef) -> Raw:
    probes = node.spec.probes

    def action(path: str, service: str) -> Raw:
        if probes.protocol == "GRPC":
            return {"grpc": {"port": contract.HEALTH_PORT, "service": service}}
        return {"httpGet": {"path": path, "port": contract.API_PORT}}

    return {
        "startupProbe": {
            **action(contract.STARTED_PATH, contract.STARTED_SERVICE),
            "periodSeconds": 1,
            "timeoutSeconds": 2,
            "failureThreshold": startup_seconds(node.spec),
        },
        # Two failures in a row, so that one lost packet does not take a node out; NotReady still
        # comes in about 4 s. Four in a ring: while it agrees on a new plan it holds its requests,
        # and must not leave its Service without nodes.
        "readinessProbe": {
            **action(contract.READY_PATH, contract.READY_SERVICE),
            "periodSeconds": probes.readiness_period_seconds,
            "timeoutSeconds": 2,
            "failureThreshold": 4 if node.has_peers else 2,
            "successThreshold": 1,
        },
        # Long enough for a busy node on a crowded machine, short enough for one that hangs.
        "livenessProbe": {
            **action(contract.LIVE_PATH, contract.LIVE_SERVICE),
            "periodSeconds": probes.liveness_period_seconds,
            "timeoutSeconds": 3,
            "failureThreshold": probes.liveness_failure_threshold,
            # A node that hangs cannot drain, so it does not get the time for it.
            "terminationGracePeriodSeconds": HUNG_GRACE_SECONDS,
        },
    }


def _lifecycle(spec: ExoNodeSpec) -> Raw:
    seconds = spec.termination.pre_stop_seconds
    return {"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}} if seconds else {}


def _volumes(node: NodeRef) -> list[Raw]:
    storage = node.spec.storage
    claim = storage.existing_claim
    if claim is None and storage.size is not None:
        claim = names.cache_claim(node.name)
    cache: Raw = {"persistentVolumeClaim": {"claimName": claim}} if claim else {"emptyDir": {}}
    volumes: list[Raw] = [{"name": "tmp", "emptyDir": {}}, {"name": "cache", **cache}]
    if node.spec.tls.secret_name:
        secret = {"secretName": node.spec.tls.secret_name, "defaultMode": 0o440}
        volumes.append({"name": "tls", "secret": secret})
    return volumes


def _mounts(node: NodeRef) -> list[Raw]:
    mounts: list[Raw] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": contract.CACHE_DIR},
    ]
    if node.spec.tls.secret_name:
        mounts.append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    return mounts


def _placement(node: NodeRef) -> Raw:
    scheduling = node.spec.scheduling
    lost = [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": LOST_MACHINE_SECONDS,
        }
        for key in ("not-ready", "unreachable")
    ]
    placement: Raw = {"tolerations": [*scheduling.tolerations, *lost]}
    if scheduling.affinity is not None:
        placement["affinity"] = scheduling.affinity
    if scheduling.topology_spread:
        placement["topologySpreadConstraints"] = scheduling.topology_spread
    elif node.spec.cluster and scheduling.affinity is None:
        placement["topologySpreadConstraints"] = [_spread(node)]
    if scheduling.node_selector:
        placement["nodeSelector"] = scheduling.node_selector
    if scheduling.priority_class_name:
        placement["priorityClassName"] = scheduling.priority_class_name
    if scheduling.runtime_class_name:
        placement["runtimeClassName"] = scheduling.runtime_class_name
    return placement


def _spread(node: NodeRef) -> Raw:
    """One node of a ring per machine, as far as there are machines."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": node.ring_labels},
    }
