"""Typed models of the custom resources' specs: the CRDs are generated from them, and `parse` reads
live objects.

Validation that the API server can do (schema, CEL) is written here as schema; the operator repeats
none of it. Every field has a description and, where there is one, a static default that
`kubectl get -o yaml` shows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

from exo import contract

Quantity = Annotated[
    str | int | float,
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "maxLength": 24,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "x-kubernetes-validations": [
                {
                    "rule": (
                        "type(self) == int ? int(self) > 0 : isQuantity(string(self)) && "
                        "quantity(string(self)).isGreaterThan(quantity('0'))"
                    ),
                    "message": "must be a quantity above zero, like 500m or 2Gi",
                }
            ],
        }
    ),
]
# Objects that Kubernetes itself checks when the pod is made.
Raw = Annotated[
    dict[str, Any], WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})
]

DEFAULT_REQUESTS: dict[str, Any] = {"cpu": "250m", "memory": "512Mi"}
DEFAULT_LIMITS: dict[str, Any] = {"memory": "2Gi"}


def cel(*rules: tuple[str, str]) -> dict[str, Any]:
    """Schema extras: CEL rules with their messages."""
    return {
        "x-kubernetes-validations": [{"rule": rule, "message": message} for rule, message in rules]
    }


class Model(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )


class ModelRef(Model):
    """What the node serves: exactly one of name, path and hf."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            (
                "[has(self.name), has(self.path), has(self.hf)].filter(set, set).size() == 1",
                "exactly one of model.name, model.path and model.hf must be set",
            ),
            ("has(self.hf) || !has(self.revision)", "model.revision goes with model.hf only"),
        )
    )
    name: str | None = Field(
        default=None,
        description="A model that comes with the node image.",
        json_schema_extra={"enum": list(contract.BUNDLED_MODELS)},
    )
    path: str | None = Field(
        default=None,
        description="Absolute path of a model file or folder inside the pod.",
        pattern="^/.+",
        max_length=1024,
    )
    hf: str | None = Field(
        default=None,
        description="A repository on the Hugging Face hub, as owner/name.",
        pattern="^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$",
        max_length=200,
    )
    revision: str | None = Field(
        default=None,
        description="Branch, tag or commit of model.hf.",
        min_length=1,
        max_length=200,
        pattern="^[A-Za-z0-9._/-]+$",
    )
    size_mib: int | None = Field(
        default=None,
        alias="sizeMiB",
        ge=1,
        le=16_777_216,
        description=(
            "Size of the model in MiB, where it is known; the time allowed for starting follows it."
        ),
    )


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
        description="What the node may use at most.",
        max_length=16,
        json_schema_extra={"default": DEFAULT_LIMITS},
    )


class Layers(Model):
    """A pinned range of layers."""

    model_config = ConfigDict(
        json_schema_extra=cel(
            ("self.end >= self.start", "layers.end must not be below layers.start")
        )
    )
    start: int = Field(ge=0, le=10_000, description="First layer, counted from 0.")
    end: int = Field(ge=0, le=10_000, description="Last layer, inclusive.")


class Discovery(Model):
    """How the node finds its peers."""

    mode: Literal["none", "dns"] = Field(
        default="dns",
        description="dns: through the headless Service of the cluster. none: the node stays alone.",
    )


class Probes(Model):
    """The kubelet's probes: they run the node's own health checks."""

    protocol: Literal["HTTP", "GRPC"] = Field(
        default="HTTP",
        description=(
            "HTTP asks /startupz, /readyz and /livez; GRPC asks grpc.health.v1 on the health port."
        ),
    )
    startup_seconds: int | None = Field(
        default=None,
        ge=10,
        le=86_400,
        description="Time allowed for starting; computed from the model's size where absent.",
    )
    readiness_period_seconds: int = Field(
        default=2, ge=1, le=60, description="Time between two readiness probes."
    )
    liveness_period_seconds: int = Field(
        default=5, ge=1, le=300, description="Time between two liveness probes."
    )
    liveness_failure_threshold: int = Field(
        default=3,
        ge=1,
        le=100,
        description="Failed liveness probes in a row before the container is restarted.",
    )


class Termination(Model):
    """How the node goes."""

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
        description="Pause before the drain, in which the Services forget the pod.",
    )
    grace_period_seconds: int | None = Field(
        default=None,
        ge=1,
        le=7200,
        description="The pod's grace period; pause, drain and 10 s for cleaning up where absent.",
    )


class Storage(Model):
    """Where the node keeps downloaded and converted models. An emptyDir where neither field is
    set.
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
        default=None, description="Size of the PersistentVolumeClaim to make, like 10Gi."
    )
    storage_class_name: str | None = Field(
        default=None, description="Storage class of the claim.", min_length=1, max_length=253
    )
    existing_claim: str | None = Field(
        default=None,
        description="A PersistentVolumeClaim that is there already.",
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
        default=None, description="The API key that clients must show."
    )
    ring_secret_ref: RingSecretKey | None = Field(
        default=None,
        description=(
            "The secret that the nodes of the ring prove to each other; one of the operator's"
            " making where absent."
        ),
    )


class Tls(Model):
    """Mutual TLS between the nodes."""

    secret_name: str | None = Field(
        default=None,
        description=(
            "A Secret with tls.crt, tls.key and ca.crt. Plain text between the nodes where absent."
        ),
        min_length=1,
        max_length=253,
    )


class Scheduling(Model):
    """Where the pod may run. Field by field as in a pod's spec."""

    node_selector: dict[str, str] = Field(
        default_factory=dict, description="Labels the machine must have."
    )
    tolerations: list[Raw] = Field(
        default_factory=list, description="Taints the pod tolerates.", max_length=32
    )
    affinity: Raw | None = Field(
        default=None, description="Affinity; replaces the default of spreading a ring's nodes."
    )
    topology_spread: list[Raw] = Field(
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


class NetworkPolicy(Model):
    """Who may reach the pod over the network."""

    enabled: bool | None = Field(
        default=None,
        description=(
            "Whether to make a NetworkPolicy; what the operator was installed with where absent."
        ),
    )
    api_from: list[Raw] = Field(
        default_factory=list,
        description=(
            "Peers (as in a NetworkPolicy's from) that may use the API; everyone where empty."
        ),
        max_length=32,
    )


class NodeTemplate(Model):
    """What ExoNode and the template of an ExoCluster have in common."""

    engine: Literal["auto", "onnx", "numpy", "dummy"] = Field(
        default="auto", description="The inference engine."
    )
    image: str | None = Field(
        default=None,
        description="Image of the node; what the operator was installed with where absent.",
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
            "Memory in MiB that the node offers for weights and KV cache; from its limit where"
            " absent."
        ),
    )
    probes: Probes = Field(default=Probes(), description="Startup, readiness and liveness probes.")
    termination: Termination = Field(default=Termination(), description="Draining and stopping.")
    storage: Storage = Field(default=Storage(), description="The model cache.")
    auth: Auth = Field(default=Auth(), description="Access to the API and to the ring.")
    tls: Tls = Field(default=Tls(), description="Mutual TLS between nodes.")
    scheduling: Scheduling = Field(default=Scheduling(), description="Placement of the pod.")
    network_policy: NetworkPolicy = Field(
        default=NetworkPolicy(), description="Network access to the pod."
    )
    extra_env: list[EnvVar] = Field(
        default_factory=list,
        description="Further environment variables of the node.",
        max_length=64,
    )


class ExoNodeSpec(NodeTemplate):
    """The wanted state of one inference node."""

    model: ModelRef = Field(description="The model to serve.")
    cluster: str = Field(
        default="",
        description=(
            "Name of the ring that the node joins; empty for a node of its own. Cannot be changed."
        ),
        max_length=52,
        pattern="^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
        json_schema_extra=cel(
            ("self == oldSelf", "spec.cluster cannot be changed; make a new ExoNode")
        ),
    )
    layers: Layers | None = Field(
        default=None, description="Layers this node must hold; planned by the ring where absent."
    )
    discovery: Discovery = Field(default=Discovery(), description="How the node finds its peers.")
    suspend: bool = Field(
        default=False, description="Takes the pod away and keeps everything else."
    )


class Strategy(Model):
    """How changes are rolled out."""

    type: Literal["RollingUpdate"] = Field(
        default="RollingUpdate", description="Nodes are replaced one after another."
    )
    max_unavailable: int = Field(
        default=1, ge=1, le=1000, description="Nodes that may be missing during a change."
    )


class Disruption(Model):
    """Voluntary disruptions, like the drain of a machine."""

    max_unavailable: int = Field(
        default=1, ge=0, le=1000, description="Nodes that may be evicted at once."
    )


class RestartPolicy(Model):
    """The restart budget: a node that keeps crashing ends in Failed instead of looping for ever."""

    max_restarts: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="Restarts of the nodes before the cluster is Failed; 0 for no limit.",
    )


class ExoClusterSpec(Model):
    """The wanted state of a ring of nodes that serve one model together."""

    nodes: int = Field(default=1, ge=0, le=1000, description="Number of nodes.")
    model: ModelRef = Field(description="The model that the ring serves.")
    template: NodeTemplate = Field(
        default=NodeTemplate(), description="What every node of the ring is like."
    )
    strategy: Strategy = Field(default=Strategy(), description="How changes are rolled out.")
    disruption: Disruption = Field(default=Disruption(), description="The PodDisruptionBudget.")
    restart: RestartPolicy = Field(default=RestartPolicy(), description="The restart budget.")
    suspend: bool = Field(
        default=False, description="Takes the nodes' pods away and keeps everything else."
    )
