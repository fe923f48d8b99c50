"""The pod of an ExoNode: container, probes, security, volumes, placement. Pure.

Every point of the restricted Pod Security Standard holds, whatever the spec says.
"""

from __future__ import annotations

import math
from typing import Any

from exo import contract
from exo_operator.api import names
from exo_operator.api.spec import ExoNodeSpec, SecretKey
from exo_operator.exonode import objects as render
from exo_operator.exonode.objects import Manifest, NodeRef

HUNG_GRACE_SECONDS = 5


def pod(node: NodeRef, defaults: render.Defaults, secret: SecretKey | None = None) -> Manifest:
    """The node's pod. Its name, host name and place in the headless Service stay the same over
    replacements.

    secret: what the nodes of its ring share. It is no part of the hash: no pod is replaced to have
        it.
    """
    spec = node.spec
    image = spec.image or defaults.image
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": node.name,
            "namespace": node.namespace,
            "labels": render.pod_labels(node),
            "annotations": {
                names.ANNOTATION_SPEC_HASH: render.spec_hash(spec, image),
                "prometheus.io/scrape": "true",
                "prometheus.io/port": str(contract.API_PORT),
                "prometheus.io/path": contract.METRICS_PATH,
            },
            "ownerReferences": [names.owner_reference(node.raw)],
        },
        "spec": {
            "hostname": node.name,
            "subdomain": names.ring_service(node.ring),
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": render.grace_seconds(spec),
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": render.USER_ID,
                "runAsGroup": render.USER_ID,
                "fsGroup": render.USER_ID,
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [_container(node, image, secret)],
            "volumes": _volumes(node),
            **_placement(node),
        },
    }
    if in_ring(spec):
        manifest["spec"]["readinessGates"] = [{"conditionType": contract.RING_FORMED_GATE}]
    return manifest


def in_ring(spec: ExoNodeSpec) -> bool:
    """Whether the node has peers to wait for."""
    return bool(spec.cluster) and spec.discovery.mode != "none"


def _container(node: NodeRef, image: str, secret: SecretKey | None) -> Manifest:
    spec = node.spec
    ports = {"http": contract.API_PORT, "grpc": contract.GRPC_PORT, "health": contract.HEALTH_PORT}
    return {
        "name": render.CONTAINER,
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
        **_probes(spec),
        **_lifecycle(spec),
    }


def _environment(node: NodeRef, ring_secret: SecretKey | None) -> list[Manifest]:
    spec = node.spec
    mode = "dns" if in_ring(spec) else "none"
    settings = {
        "node-id": node.name,
        "model": render.model_argument(spec.model),
        "engine": spec.engine,
        "host": "0.0.0.0",
        "api-port": str(contract.API_PORT),
        "grpc-port": str(contract.GRPC_PORT),
        "health-port": str(contract.HEALTH_PORT),
        "discovery": mode,
        "drain-seconds": str(spec.termination.drain_seconds),
        "log-format": "json",
    }
    if mode == "dns":
        settings["cluster"] = spec.cluster
        settings["discovery-name"] = names.ring_host(node.ring, node.namespace)
    if spec.model.revision is not None:
        settings["hub-revision"] = spec.model.revision
    if spec.memory_mib is not None:
        settings["memory"] = str(spec.memory_mib)
    if spec.layers is not None:
        settings["layers"] = f"{spec.layers.start}-{spec.layers.end}"
    if spec.tls.secret_name:
        settings["tls-dir"] = render.TLS_DIR
    environment: list[Manifest] = [
        {"name": contract.env_name(k), "value": v} for k, v in settings.items()
    ]
    environment.append({"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}})
    for setting, secret in (("api-key", spec.auth.api_key_secret_ref), ("secret", ring_secret)):
        if secret is not None:
            reference = {"secretKeyRef": {"name": secret.name, "key": secret.key}}
            environment.append({"name": contract.env_name(setting), "valueFrom": reference})
    own = {variable["name"] for variable in environment}
    environment.extend(
        {"name": e.name, "value": e.value} for e in spec.extra_env if e.name not in own
    )
    return environment


def _probes(spec: ExoNodeSpec) -> Manifest:
    probes = spec.probes

    def action(path: str, service: str) -> Manifest:
        if probes.protocol == "GRPC":
            return {"grpc": {"port": contract.HEALTH_PORT, "service": service}}
        return {"httpGet": {"path": path, "port": contract.API_PORT}}

    startup_period = 1
    return {
        "startupProbe": {
            **action(contract.STARTED_PATH, contract.STARTED_SERVICE),
            "periodSeconds": startup_period,
            "timeoutSeconds": 2,
            "failureThreshold": math.ceil(render.startup_seconds(spec) / startup_period),
        },
        # Two in a row: one lost packet does not take a node out; NotReady still comes in about 4 s.
        # Four in a ring: while it plans anew it holds its requests, and must not leave its Service
        # without nodes.
        "readinessProbe": {
            **action(contract.READY_PATH, contract.READY_SERVICE),
            "periodSeconds": probes.readiness_period_seconds,
            "timeoutSeconds": 2,
            "failureThreshold": 4 if in_ring(spec) else 2,
            "successThreshold": 1,
        },
        # Long enough for a busy node on a crowded machine, short enough for one that hangs.
        "livenessProbe": {
            **action(contract.LIVE_PATH, contract.LIVE_SERVICE),
            "periodSeconds": probes.liveness_period_seconds,
            "timeoutSeconds": 3,
            "failureThreshold": probes.liveness_failure_threshold,
            # A node that hangs cannot drain: it need not get the time for it.
            "terminationGracePeriodSeconds": HUNG_GRACE_SECONDS,
        },
    }


def _lifecycle(spec: ExoNodeSpec) -> Manifest:
    seconds = spec.termination.pre_stop_seconds
    return {"lifecycle": {"preStop": {"sleep": {"seconds": seconds}}}} if seconds else {}


def _volumes(node: NodeRef) -> list[Manifest]:
    storage = node.spec.storage
    cache: Manifest = {"name": "cache", "emptyDir": {}}
    claim = storage.existing_claim or (
        names.cache_claim(node.name) if storage.size is not None else None
    )
    if claim:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": claim}}
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}, cache]
    if node.spec.tls.secret_name:
        volumes.append(
            {
                "name": "tls",
                "secret": {"secretName": node.spec.tls.secret_name, "defaultMode": 0o440},
            }
        )
    return volumes


def _mounts(node: NodeRef) -> list[Manifest]:
    mounts: list[Manifest] = [
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "cache", "mountPath": contract.CACHE_DIR},
    ]
    if node.spec.tls.secret_name:
        mounts.append({"name": "tls", "mountPath": render.TLS_DIR, "readOnly": True})
    return mounts


def _placement(node: NodeRef) -> dict[str, Any]:
    scheduling = node.spec.scheduling
    # A machine that died gives up its node after 10 s instead of Kubernetes' five minutes.
    lost = [
        {
            "key": f"node.kubernetes.io/{key}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": 10,
        }
        for key in ("not-ready", "unreachable")
    ]
    placement: dict[str, Any] = {"tolerations": [*scheduling.tolerations, *lost]}
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


def _spread(node: NodeRef) -> Manifest:
    """One node of a ring per machine, as far as there are machines."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": render.ring_selector(node)},
    }
