"""`NodeSettings`: everything that a node is built from, checked once. Only the command line reads
the environment.

Each field is the setting of the same name (`node_id` is `--node-id` and `EXO_NODE_ID`), unless its
comment says otherwise.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from pathlib import Path

from exo.contract import (
    API_PORT,
    DEFAULT_MODEL,
    DISCOVERY_PORT,
    GRPC_PORT,
    DiscoveryName,
    EngineName,
)
from exo.inference.engines.options import EngineOptions

_NODE_ID = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


def default_node_id() -> str:
    """The host name; in Kubernetes that is the pod's name."""
    return socket.gethostname() or "node"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings:
    """Raises `ValueError` whose message begins with the name of the wrong field.

    memory_mib: `--memory`; the most that the node offers. None: what the machine or its cgroup
        allows.
    advertise_host: the address that peers are told; "": they use the one they found.
    api_port: told to peers and shown; the API server of the command line listens there.
    secret: the shared secret of the hello; b"": none is needed.
    tls_cert, tls_key, tls_ca: PEM files for mutual TLS between nodes; all three or none.
    tls_check_identity: a peer's certificate must name its node id; otherwise any certificate of the
        authority may speak for any node.
    engine_options: its `cache_dir` is the one here where it has none of its own.
    models_dir: folder of models by name; None: the image's.
    cache_dir: where downloaded and converted models are kept; None: a folder in the user's home.
    hub_endpoint: address of the hub; None: the public one.
    max_requests: sequences, running and waiting, that this node takes as entry node. More are
        refused with `Overloaded`.
    recovery_seconds: how long a stream waits for a ring that can continue it. Then it ends with
        `RingUnavailable`.
    stuck_seconds: how long a forward pass may make no progress, in addition to what passes usually
        take, before this node is stuck.
    """

    node_id: str = field(default_factory=default_node_id)
    model: str = DEFAULT_MODEL
    engine: EngineName = "auto"
    engine_options: EngineOptions = field(default_factory=EngineOptions)
    host: str = "0.0.0.0"
    advertise_host: str = ""
    api_port: int = API_PORT
    grpc_port: int = GRPC_PORT
    discovery: DiscoveryName = "none"
    discovery_config: Path | None = None
    discovery_name: str = ""
    discovery_port: int = DISCOVERY_PORT
    cluster: str = "default"
    secret: bytes = field(default=b"", repr=False)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    tls_check_identity: bool = False
    drain_seconds: float = 30.0
    memory_mib: int | None = None
    context_length: int | None = None  # None: the model's own, bounded by what memory allows
    # `--layers 0-14`: first and last layer of this node, both included.
    pinned: tuple[int, int] | None = None
    models_dir: Path | None = None
    cache_dir: Path | None = None
    hub_endpoint: str | None = None
    hub_token: str | None = field(default=None, repr=False)
    hub_revision: str | None = None
    offline: bool = False
    max_requests: int = 256
    recovery_seconds: float = 60.0
    stuck_seconds: float = 30.0
    initialize_timeout: float = 3600.0

    def __post_init__(self) -> None:
        if not _NODE_ID.fullmatch(self.node_id):
            raise ValueError(
                f"node_id: {self.node_id!r} must be 1 to 128 letters, digits, '.', '_' or '-'"
            )
        if not self.model:
            raise ValueError("model: is empty; name a bundled model, a path or hf:OWNER/REPO")
        if not 1 <= len(self.cluster) <= 128:
            raise ValueError(f"cluster: {len(self.cluster)} characters, must be 1 to 128")
        for name in ("api_port", "grpc_port", "discovery_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise ValueError(f"{name}: {getattr(self, name)} is no port (0 to 65535)")
        for name in ("drain_seconds", "recovery_seconds", "initialize_timeout"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {getattr(self, name)} must be 0 or more seconds")
        if not 0 < self.stuck_seconds < float("inf"):
            raise ValueError(f"stuck_seconds: {self.stuck_seconds} must be more than 0 seconds")
        self._check_sizes()
        self._check_discovery()
        self._check_tls()

    def _check_sizes(self) -> None:
        if self.memory_mib is not None and self.memory_mib < 0:
            raise ValueError(f"memory_mib: {self.memory_mib} must be 0 or more MiB")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length: {self.context_length} must be at least 1 token")
        if self.max_requests < 1:
            raise ValueError(f"max_requests: {self.max_requests} must be at least 1")
        if self.pinned is not None and not 0 <= self.pinned[0] <= self.pinned[1]:
            raise ValueError(f"pinned: {self.pinned[0]}-{self.pinned[1]} is no range of layers")

    def _check_discovery(self) -> None:
        if self.discovery == "manual" and self.discovery_config is None:
            raise ValueError("discovery_config: manual discovery needs a JSON file of peers")
        if self.discovery == "dns" and not self.discovery_name:
            raise ValueError("discovery_name: dns discovery needs the name of a headless Service")

    def _check_tls(self) -> None:
        given = [
            name for name in ("tls_cert", "tls_key", "tls_ca") if getattr(self, name) is not None
        ]
        if given and len(given) < 3:
            missing = next(name for name in ("tls_cert", "tls_key", "tls_ca") if name not in given)
            raise ValueError(f"{missing}: mutual TLS needs tls_cert, tls_key and tls_ca")
        if self.tls_check_identity and not given:
            raise ValueError(
                "tls_check_identity: identities are in certificates; set the folder of those"
                " (tls-dir) too"
            )
