"""Typed models of the custom resources' specs. The CRDs are generated from them, and the operator
reads live objects with them.
"""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict, Field

from exo import contract
from exo_operator.api.fields import Model, cel
from exo_operator.api.template import NodeTemplate


class ModelRef(Model):
    """The model to serve: exactly one of name, path and hf."""

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
        description="A model that is part of the node image.",
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
            "Size of the model in MiB, if known. The time allowed for starting depends on it."
        ),
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


# Those of contract.DISCOVERIES that make sense for a pod.
PodDiscovery = Literal["none", "dns"]


class Discovery(Model):
    """How the node finds its peers."""

    mode: PodDiscovery = Field(
        default="dns",
        description=(
            "dns: through the headless Service of its ExoCluster. none: the node stays alone."
        ),
    )


class ExoNodeSpec(NodeTemplate):
    """The desired state of an inference node."""

    model: ModelRef = Field(description="The model to serve.")
    cluster: str = Field(
        default="",
        description=(
            "Name of the ring that the node joins. Empty for a node on its own. Cannot be changed."
        ),
        max_length=52,
        pattern="^([a-z]([-a-z0-9]*[a-z0-9])?)?$",
        json_schema_extra=cel(
            ("self == oldSelf", "spec.cluster cannot be changed; make a new ExoNode")
        ),
    )
    layers: Layers | None = Field(
        default=None, description="Layers that this node must hold. If unset, the ring plans them."
    )
    discovery: Discovery = Field(default=Discovery(), description="How the node finds its peers.")
    suspend: bool = Field(default=False, description="Removes the pod and keeps everything else.")


class Strategy(Model):
    """How changes are rolled out."""

    type: Literal["RollingUpdate"] = Field(
        default="RollingUpdate", description="Nodes are replaced one after another."
    )
    max_unavailable: int = Field(
        default=1, ge=1, le=1000, description="Nodes that may be missing during a change."
    )


class Disruption(Model):
    """Voluntary disruptions, like draining a machine."""

    max_unavailable: int = Field(
        default=1, ge=0, le=1000, description="Nodes that may be evicted at once."
    )


class RestartPolicy(Model):
    """The restart budget: nodes that keep crashing end in Failed instead of restarting forever."""

    max_restarts: int = Field(
        default=10,
        ge=0,
        le=10_000,
        description="Restarts of the nodes before the ExoCluster is Failed. 0 means no limit.",
    )


class ExoClusterSpec(Model):
    """The desired state of a set of nodes that serve one model together."""

    nodes: int = Field(default=1, ge=0, le=1000, description="Number of nodes.")
    model: ModelRef = Field(description="The model that the nodes serve together.")
    template: NodeTemplate = Field(default=NodeTemplate(), description="What every node is like.")
    strategy: Strategy = Field(default=Strategy(), description="How changes are rolled out.")
    disruption: Disruption = Field(default=Disruption(), description="The PodDisruptionBudget.")
    restart: RestartPolicy = Field(default=RestartPolicy(), description="The restart budget.")
    suspend: bool = Field(
        default=False, description="Removes the nodes' pods and keeps everything else."
    )
