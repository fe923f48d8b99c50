"""The part of a spec that ExoNode and the template of an ExoCluster share.

What the API server can validate (schema, CEL) is written here as schema and is not repeated in the
operator. Every field has a description and, where it has a static default, one that
`kubectl get -o yaml` shows.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from exo import contract
from exo_operator.api.fields import Model, Quantity, Unchecked, cel

DEFAULT_REQUESTS: dict[str, Any] = {"cpu": "250m", "memory": "512Mi"}
DEFAULT_LIMITS: dict[str, Any] = {"memory": "2Gi"}


class Resources(Model):
    """Compute resources of the node's container."""

    requests: dict[str, Quantity] = Field(
        default_factory=lambda: dict(DEFAULT_REQUESTS),
        description="What the scheduler reserves.",
        max_length=16,
        json_schema_extra={"default": DEFAULT_REQUESTS},
    )
    limits: dict[str, Quantity] = Field(
        default_factory=lambda: dict(DEFAULT_LIMITS),
        description="The most that the node may use.",
        max_length=16,
        json_schema_extra={"default": DEFAULT_LIMITS},
    )


class Probes(Model):
    """The kubelet's probes. They run the node's own health checks."""

    protocol: Literal["HTTP", "GRPC"] = Field(
        default="HTTP",
        description=(
            "HTTP asks /startupz, /readyz and /livez. GRPC asks grpc.health.v1 on the health port."
        ),
    )
    startup_seconds: int | None = Field(
        default=None,
        ge=10,
        le=86_400,
        description="Time allowed for starting. Computed from the model's size if unset.",
    )
    readiness_period_seconds: int = Field(
        default=2, ge=1, le=60, description="Seconds between two readiness probes."
    )
    liveness_period_seconds: int = Field(
        default=5, ge=1, le=300, description="Seconds between two liveness probes."
    )
    liveness_failure_threshold: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Consecutive failed liveness probes before the container is restarted.",
    )


class Termination(Model):
    """How the node stops."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!has(self.gracePeriodSeconds) || self.gracePeriodSeconds > self.drainSeconds",
                "termination.gracePeriodSeconds must be above termination.drainSeconds",
            )
        )
    )
    drain_seconds: int = Field(
        default=30, ge=0, le=3600, description="Time that running requests get to finish."
    )
    pre_stop_seconds: int = Field(
        default=3,
        ge=0,
        le=60,
        description="Pause before the drain, during which the Services drop the pod.",
    )
    grace_period_seconds: int | None = Field(
        default=None,
        ge=1,
        le=7200,
        description="The pod's grace period. If unset: the pause, the drain and 10 s for cleanup.",
    )


class Storage(Model):
    """Where the node keeps downloaded and converted models: an emptyDir if neither size nor
    existingClaim is set.
    """

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "!(has(self.size) && has(self.existingClaim))",
                "storage.size and storage.existingClaim exclude each other",
            ),
            (
                "has(self.size) || !has(self.storageClassName)",
                "storage.storageClassName goes with storage.size only",
            ),
        )
    )
    size: Quantity | None = Field(
        default=None, description="Size of the PersistentVolumeClaim to create, like 10Gi."
    )
    storage_class_name: str | None = Field(
        default=None, description="Storage class of that claim.", min_length=1, max_length=253
    )
    existing_claim: str | None = Field(
        default=None,
        description="An existing PersistentVolumeClaim to use.",
        min_length=1,
        max_length=253,
    )


class SecretKey(Model):
    """A key in a Secret of the same namespace."""

    name: str = Field(description="Name of the Secret.", min_length=1, max_length=253)
    key: str = Field(
        default="api-key", description="Key in the Secret.", min_length=1, max_length=253
    )


class RingSecretKey(SecretKey):
    """A key in a Secret of the same namespace."""

    key: str = Field(
        default="secret", description="Key in the Secret.", min_length=1, max_length=253
    )


class Auth(Model):
    """Who may use the API, and who may join the ring."""

    api_key_secret_ref: SecretKey | None = Field(
        default=None, description="The API key that clients must present."
    )
    ring_secret_ref: RingSecretKey | None = Field(
        default=None,
        description=(
            "The secret by which the nodes of a ring know each other. The operator creates one if"
            " unset."
        ),
    )


class Tls(Model):
    """Mutual TLS between the nodes."""

    secret_name: str | None = Field(
        default=None,
        description=(
            "A Secret with tls.crt, tls.key and ca.crt. If unset, nodes talk in plain text."
        ),
        min_length=1,
        max_length=253,
    )


class Scheduling(Model):
    """Where the pod may run. Each field is the one of the same name in a pod's spec."""

    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels that the machine must have."
    )
    tolerations: list[Unchecked] = Field(
        default_factory=list, description="Taints that the pod tolerates.", max_length=32
    )
    affinity: Unchecked | None = Field(
        default=None,
        description="Affinity. Replaces the default, which spreads a ring's nodes over machines.",
    )
    topology_spread: list[Unchecked] = Field(
        default_factory=list, description="Topology spread constraints.", max_length=16
    )
    priority_class_name: str | None = Field(
        default=None, description="Priority class.", max_length=253
    )
    runtime_class_name: str | None = Field(
        default=None, description="Runtime class.", max_length=253
    )


class EnvVar(Model):
    """One environment variable."""

    name: str = Field(
        description="Name.", min_length=1, max_length=256, pattern="^[A-Za-z_][A-Za-z0-9_]*$"
    )
    value: str = Field(default="", description="Value.", max_length=32_768)


class NetworkAccess(Model):
    """Who may reach the pod over the network."""

    enabled: bool | None = Field(
        default=None,
        description=(
            "Whether the node gets a NetworkPolicy. If unset, as the operator was installed."
        ),
    )
    api_from: list[Unchecked] = Field(
        default_factory=list,
        description=(
            "Peers that may use the API, as in a NetworkPolicy's from. If empty, everyone may."
        ),
        max_length=32,
    )


class NodeTemplate(Model):
    """What ExoNode and the template of an ExoCluster have in common."""

    engine: contract.EngineName = Field(default="auto", description="The inference engine.")
    image: str | None = Field(
        default=None,
        description="Image of the node. If unset, the one the operator was installed with.",
        min_length=1,
        max_length=512,
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        default="IfNotPresent", description="When the image is pulled."
    )
    resources: Resources = Field(default=Resources(), description="Compute resources.")
    memory_mib: int | None = Field(
        default=None,
        alias="memoryMiB",
        ge=1,
        le=16_777_216,
        description=(
            "Memory in MiB that the node offers for weights and KV cache. If unset, derived from"
            " its memory limit."
        ),
    )
    probes: Probes = Field(default=Probes(), description="Startup, readiness and liveness probes.")
    termination: Termination = Field(default=Termination(), description="Draining and stopping.")
    storage: Storage = Field(default=Storage(), description="The model cache.")
    auth: Auth = Field(default=Auth(), description="Access to the API and to the ring.")
    tls: Tls = Field(default=Tls(), description="Mutual TLS between nodes.")
    scheduling: Scheduling = Field(default=Scheduling(), description="Placement of the pod.")
    network_policy: NetworkAccess = Field(
        default=NetworkAccess(), description="Network access to the pod."
    )
    extra_env: list[EnvVar] = Field(
        default_factory=list, description="More environment variables for the node.", max_length=64
    )
