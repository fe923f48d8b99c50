"""Every setting of a node, once: flag, `EXO_…` variable, config file key, default, help, and the
field it fills all come from this table.

Precedence: flag, environment, config file, default. Imports nothing heavy: `exo --help` must be
quick.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

from exo.cli.failures import USAGE, Failure
from exo.cli.settings.setting import Feed, Setting, port, secret
from exo.contract import (
    API_PORT,
    DEFAULT_MODEL,
    DISCOVERY_PORT,
    GRPC_PORT,
    HEALTH_PORT,
    MODELS_DIR,
    DiscoveryName,
    EngineName,
)
from exo.inference.engines.options import WeightFormat

# By the field that each fills.
TLS_FILES: Final = {"node.tls_cert": "tls.crt", "node.tls_key": "tls.key", "node.tls_ca": "ca.crt"}


def _in_folder(name: str) -> Callable[[Path | None], Path | None]:
    return lambda folder: None if folder is None else Path(folder) / name


def _layers(text: str | None) -> tuple[int, int] | None:
    """`3-7` as (3, 7)."""
    if not text:
        return None
    first, _, last = text.partition("-")
    if not (first.strip().isdecimal() and last.strip().isdecimal()):
        raise Failure(f"--layers: {text!r} is not a range of layers like 0-14", USAGE)
    return int(first), int(last)


def _bytes(mib: int | None) -> int | None:
    return None if mib is None else mib << 20


def _or_none(text: str) -> str | None:
    return text or None


# By the heading under which help shows them.
PANELS: Final = {
    "Model": (
        Setting(
            "model",
            str,
            DEFAULT_MODEL,
            "A bundled model's name, a GGUF file or folder, or hf:OWNER/REPO.",
            "MODEL",
        ),
        Setting(
            "engine",
            EngineName,
            "auto",
            "What computes: auto takes onnx if it is installed, else numpy.",
        ),
        Setting(
            "context-length",
            int | None,
            None,
            "Longest prompt and answer together.",
            "TOKENS",
            "the model's own",
            least=1,
        ),
        Setting(
            "models-dir",
            Path | None,
            None,
            "The folder of models that are found by name.",
            "PATH",
            f"{MODELS_DIR} if it exists",
        ),
        Setting(
            "cache-dir",
            Path | None,
            None,
            "The folder for downloads and converted weights.",
            "PATH",
            "the user's cache",
            feeds=(Feed("node.cache_dir"), Feed("engine.cache_dir")),
        ),
        Setting(
            "hub-revision",
            str | None,
            None,
            "Branch, tag or commit of a hf: model.",
            "TEXT",
            "main",
        ),
        secret("hub-token", "Token for gated hf: models.", Feed("node.hub_token", _or_none)),
        Setting("offline", bool, False, "Never ask the hub; use what is in the cache."),
    ),
    "Engine": (
        Setting(
            "weight-format",
            WeightFormat,
            "auto",
            "onnx: how weights are kept in memory; auto decides by size.",
            feeds=(Feed("engine.weight_format"),),
        ),
        Setting(
            "kv-budget",
            int | None,
            None,
            "Memory for keys and values.",
            "MIB",
            "half of what the weights leave",
            least=1,
            feeds=(Feed("engine.kv_budget", _bytes),),
        ),
        Setting(
            "max-sequences",
            int,
            64,
            "onnx: sequences kept at a time, finished ones for reuse included.",
            "N",
            least=1,
            feeds=(Feed("engine.max_sequences"),),
        ),
        Setting(
            "threads",
            int | None,
            None,
            "Threads that compute.",
            "N",
            "one per usable core",
            least=1,
            feeds=(Feed("engine.threads"),),
        ),
    ),
    "API": (
        Setting(
            "host",
            str,
            "0.0.0.0",
            "The address to listen on.",
            "ADDRESS",
            feeds=(Feed("node.host"), Feed("api.host")),
        ),
        port(
            "api-port",
            API_PORT,
            "HTTP API, dashboard and health endpoints; 0 takes any free one.",
            Feed("node.api_port"),
            Feed("api.port"),
        ),
        port(
            "health-port",
            HEALTH_PORT,
            "The gRPC health service, plaintext, for probes; 0 takes any free one.",
            Feed("process.health_port"),
        ),
        secret("api-key", "Ask for this key on /v1 and /api.", Feed("api.api_key", _or_none)),
        Setting(
            "max-requests",
            int,
            256,
            "Requests taken at a time; more are answered 429.",
            "N",
            least=1,
        ),
        Setting(
            "drain-seconds",
            float,
            30.0,
            "Time for requests to finish on SIGTERM.",
            "SECONDS",
            least=0,
            feeds=(Feed("node.drain_seconds"), Feed("api.drain_seconds")),
        ),
    ),
    "Ring": (
        Setting(
            "node-id", str | None, None, "This node's name in the ring.", "TEXT", "the host's name"
        ),
        Setting(
            "cluster", str, "default", "Only nodes of the same cluster name form a ring.", "TEXT"
        ),
        port("grpc-port", GRPC_PORT, "Where peers reach this node; 0 takes any free one."),
        Setting(
            "advertise-host",
            str,
            "",
            "The address that peers use for this node.",
            "ADDRESS",
            "POD_IP, else found by the peers",
        ),
        Setting("discovery", DiscoveryName, "none", "How peers are found."),
        Setting(
            "discovery-config",
            Path | None,
            None,
            "manual: a JSON file, re-read when it changes.",
            "FILE",
        ),
        Setting("discovery-name", str, "", "dns: the name of the ring's headless Service.", "HOST"),
        port("discovery-port", DISCOVERY_PORT, "udp: the port of the broadcasts."),
        Setting(
            "memory",
            int | None,
            None,
            "The memory that this node offers.",
            "MIB",
            "what the machine allows",
            least=0,
            feeds=(Feed("node.memory_mib"),),
        ),
        Setting(
            "layers",
            str | None,
            None,
            "Pin this node to layers, like 0-14.",
            "FIRST-LAST",
            "by memory",
            feeds=(Feed("node.pinned", _layers),),
        ),
        Setting(
            "recovery-seconds",
            float,
            60.0,
            "How long a stream waits for a lost ring.",
            "SECONDS",
            least=0,
        ),
        Setting(
            "stuck-seconds",
            float,
            30.0,
            "After how long a hanging pass counts as stuck.",
            "SECONDS",
            least=1,
        ),
    ),
    # Apart from the ring: in one table the long --no-… flag would cut off names of other flags at
    # 80 columns.
    "Security": (
        Setting(
            "tls-dir",
            Path | None,
            None,
            "Mutual TLS: a folder with tls.crt, tls.key and ca.crt.",
            "PATH",
            feeds=tuple(Feed(field, _in_folder(name)) for field, name in TLS_FILES.items()),
        ),
        Setting(
            "tls-check-identity", bool, False, "A peer's certificate must also name its node id."
        ),
        secret(
            "secret", "A secret that all nodes of the ring share.", Feed("node.secret", str.encode)
        ),
    ),
    "Log": (
        Setting(
            "log-format",
            Literal["json", "console"] | None,
            None,
            "How to log.",
            "json|console",
            "console on a terminal, else json",
            feeds=(Feed("process.log_format"),),
        ),
        Setting(
            "log-level",
            Literal["debug", "info", "warning", "error"],
            "info",
            "What to log.",
            feeds=(Feed("process.log_level"),),
        ),
    ),
}
SETTINGS: Final = tuple(setting for settings in PANELS.values() for setting in settings)
BY_KEY: Final = {setting.key: setting for setting in SETTINGS}
