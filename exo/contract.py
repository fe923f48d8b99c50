"""What the node and the operator agree on: ports, paths, environment names, labels.

Standard library only: the operator imports nothing else of `exo`, and the node nothing of the
operator.
"""

from __future__ import annotations

from typing import Final, Literal, get_args

# Closed sets that flags, custom resources and factories share.
EngineName = Literal["auto", "onnx", "numpy", "dummy"]
ENGINES: Final[tuple[str, ...]] = get_args(EngineName)
DiscoveryName = Literal["none", "udp", "manual", "dns"]
DISCOVERIES: Final[tuple[str, ...]] = get_args(DiscoveryName)

# Ports of a node.
API_PORT: Final = 52415
GRPC_PORT: Final = 50051
HEALTH_PORT: Final = 50052
DISCOVERY_PORT: Final = 5678
# Port of the operator's own metrics and probes.
OPERATOR_PORT: Final = 8080

# HTTP paths of the health endpoints.
LIVE_PATH: Final = "/livez"
READY_PATH: Final = "/readyz"
STARTED_PATH: Final = "/startupz"
METRICS_PATH: Final = "/metrics"

# Metrics of a node that the operator reads for its status. The first two are histograms.
METRIC_TOKENS_PER_SECOND: Final = "exo_api_tokens_per_second"
METRIC_TIME_TO_FIRST_TOKEN: Final = "exo_api_time_to_first_token_seconds"
METRIC_RESIDENT_MEMORY: Final = "process_resident_memory_bytes"

# Service names of grpc.health.v1 on HEALTH_PORT.
LIVE_SERVICE: Final = "live"
READY_SERVICE: Final = "ready"
STARTED_SERVICE: Final = "started"

# Custom resources.
GROUP: Final = "exo.dev"
VERSION: Final = "v1alpha1"
LABEL_NODE: Final = f"{GROUP}/node"
LABEL_CLUSTER: Final = f"{GROUP}/cluster"
RING_FORMED_GATE: Final = f"{GROUP}/ring-formed"

# Every setting is a flag `--x-y`, an environment variable `EXO_X_Y` and a config file key, in that
# order.
ENV_PREFIX: Final = "EXO_"
DEFAULT_MODEL: Final = "smollm2-135m"
# Names of the models that a node can serve without a download or a path.
BUNDLED_MODELS: Final = (DEFAULT_MODEL,)
# Where the image keeps bundled models, and where a node keeps downloaded and converted ones.
MODELS_DIR: Final = "/models"
CACHE_DIR: Final = "/var/cache/exo"


def env_name(setting: str) -> str:
    """The environment variable of a setting: `api-port` -> `EXO_API_PORT`."""
    return ENV_PREFIX + setting.replace("-", "_").upper()
