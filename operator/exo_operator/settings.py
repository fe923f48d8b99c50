"""The operator's own settings from flags and environment, and what we ask of kopf."""

from __future__ import annotations

import argparse
import os
import socket
from dataclasses import dataclass, field

import kopf

from exo import contract
from exo_operator.api import names
from exo_operator.exonode.context import Defaults
from exo_operator.kube import kinds

PREFIX = f"operator.{contract.GROUP}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line and the environment say."""

    namespaces: tuple[str, ...] = ()
    port: int = contract.OPERATOR_PORT
    leader_election: bool = True
    lease_namespace: str = "default"
    lease_name: str = names.MANAGED_BY
    identity: str = ""
    workers: int = 16
    resync_s: float = 60.0
    log_level: str = "info"
    log_format: str = "json"
    defaults: Defaults = field(default_factory=Defaults)


def parse(argv: list[str]) -> Settings:
    """Read the flags. Each can also be given as EXO_OPERATOR_<FLAG>. A wrong one exits with code
    2.
    """
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        return _settings(options)
    except ValueError as error:
        parser.error(str(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exo_operator", description="Turns ExoNodes and ExoClusters into pods."
    )

    def add(flag: str, default: str, text: str) -> None:
        variable = "EXO_OPERATOR_" + flag.replace("-", "_").upper()
        parser.add_argument(
            f"--{flag}", default=os.environ.get(variable, default), help=f"{text} (env {variable})"
        )

    add("namespaces", "", "comma-separated namespaces to serve; all if empty")
    add("port", str(contract.OPERATOR_PORT), "port of /metrics, /healthz and /readyz")
    add("node-image", Defaults().image, "image of nodes whose spec names none")
    add("network-policy", "false", "whether nodes get a NetworkPolicy by default")
    add("leader-election", "true", "whether a Lease decides which replica acts")
    add("lease-namespace", own_namespace(), "namespace of the Lease")
    add("lease-name", names.MANAGED_BY, "name of the Lease")
    add("workers", "16", "reconciles at once")
    add("resync-seconds", "60", "seconds between two full comparisons with the API server")
    add("log-level", "info", "debug, info, warning or error")
    add("log-format", "json", "json or console")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    """Raises ValueError if a value is not readable."""
    return Settings(
        namespaces=tuple(name.strip() for name in options.namespaces.split(",") if name.strip()),
        port=int(options.port),
        leader_election=_flag(options.leader_election),
        lease_namespace=options.lease_namespace,
        lease_name=options.lease_name,
        identity=socket.gethostname(),
        workers=int(options.workers),
        resync_s=float(options.resync_seconds),
        log_level=options.log_level,
        log_format=options.log_format,
        defaults=Defaults(
            image=options.node_image,
            network_policy=_flag(options.network_policy),
            operator_namespace=own_namespace(""),
        ),
    )


def _flag(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(f"expected true or false, not {text!r}")
    return text.lower() == "true"


def own_namespace(default: str = "default") -> str:
    """The namespace of the pod that the operator runs in."""
    path = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    return default


def for_kopf() -> kopf.OperatorSettings:
    """kopf's settings: nothing left on objects, bounded requests, no scans of CRDs, namespaces."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.queueing.worker_limit = 50
    settings.networking.request_timeout = 15.0
    settings.networking.connect_timeout = 5.0
    settings.watching.chunk_size = 500
    settings.process.ultimate_exiting_timeout = 20.0
    settings.execution.default_backoff = 1.0
    settings.persistence.finalizer = f"{PREFIX}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=PREFIX)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=PREFIX)
    for kind in kinds.WATCHED:
        if kind.selector:
            resource = (kind.group, kind.version, kind.plural)
            settings.watching.label_selectors[resource] = kind.selector
    return settings
