"""`exo serve`: builds the node and its HTTP face, runs them as one group, and ends them in order on
SIGTERM.

The API server starts first: probes have an answer ("loading model 43 %") from the first moment. It
closes last.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Literal

import structlog

from exo.api.context import ApiSettings
from exo.api.probes import drain_reason
from exo.api.server import ApiServer
from exo.cli.failures import USAGE, Failure, explain
from exo.cli.settings.environment import misspelt
from exo.cli.settings.folders import cache_dir, engine_options, hub_endpoint
from exo.cli.settings.options import BY_KEY
from exo.cli.startup import LateStderr, startup_bar
from exo.inference.errors import NodeDraining
from exo.lifecycle import ResourceGroup
from exo.networking.grpc.health_server import HealthServer
from exo.node.build import build_node
from exo.node.node import Node
from exo.node.settings import NodeSettings
from exo.observability.logging import configure_logging
from exo.observability.metrics import install as count_lifecycle

_log = structlog.get_logger("exo.serve")
# Everything is closed by then; what still runs is a thread that nobody can stop.
LEAVE_SECONDS = 3.0
_TLS_FILES = {"tls_cert": "tls.crt", "tls_key": "tls.key", "tls_ca": "ca.crt"}
_SAME = (
    *("model", "engine", "host", "api_port", "grpc_port", "cluster"),
    *("drain_seconds", "recovery_seconds", "stuck_seconds"),
    *(
        "discovery",
        "discovery_config",
        "discovery_name",
        "discovery_port",
        "context_length",
        "max_requests",
    ),
    *("models_dir", "cache_dir", "hub_revision", "offline", "tls_check_identity"),
)
# Where a setting of the node has not the name of its flag.
_FLAGS = {"pinned": "layers", "memory_mib": "memory"}
# How often a resource's health is asked: well within the probes' own periods.
CHECK_SECONDS = 2.0


def node_settings(values: dict[str, Any], environ: dict[str, str] | None = None) -> NodeSettings:
    """Raises `Failure` (usage) naming the setting."""
    environ = dict(os.environ) if environ is None else environ
    fields = {name: values[name] for name in _SAME}
    fields["engine_options"] = engine_options(environ=environ)
    fields["hub_endpoint"] = hub_endpoint(environ)
    fields["memory_mib"] = values["memory"]
    fields["hub_token"] = values["hub_token"] or None
    fields["secret"] = values["secret"].encode()
    fields["advertise_host"] = values["advertise_host"] or environ.get("POD_IP", "")
    fields["pinned"] = _layers(values["layers"])
    if values["node_id"]:
        fields["node_id"] = values["node_id"]
    if values["tls_dir"] is not None:
        fields |= {name: Path(values["tls_dir"]) / file for name, file in _TLS_FILES.items()}
    try:
        return NodeSettings(**fields)
    except ValueError as error:
        raise Failure(_as_flag(str(error)), USAGE) from None


def check_flags(values: dict[str, Any]) -> None:
    """What would only be found when the node starts, and then without the name of the flag. Raises
    `Failure`.
    """
    files = {
        "discovery-config": values["discovery_config"] if values["discovery"] == "manual" else None
    }
    if values["tls_dir"] is not None:
        files |= {"tls-dir": Path(values["tls_dir"])} | {
            f"tls-dir: {name}": Path(values["tls_dir"]) / name for name in _TLS_FILES.values()
        }
    for flag, path in files.items():
        if path is not None and not path.exists():
            raise Failure(f"--{flag}: {path}: no such file or folder", USAGE)
    if values["discovery"] == "dns" and values["grpc_port"] == 0:
        raise Failure(
            "--grpc-port: dns discovery dials every node at this port, so it cannot be any"
            " free one",
            USAGE,
        )


def _as_flag(message: str) -> str:
    """`node_id: ...` is what people know as `--node-id: ...`."""
    name, _, rest = message.partition(": ")
    flag = _FLAGS.get(name, name.replace("_", "-"))
    return f"--{flag}: {rest}" if flag.replace("-", "_") in BY_KEY else message


def _layers(text: str | None) -> tuple[int, int] | None:
    if not text:
        return None
    first, _, last = text.partition("-")
    if not (first.strip().isdecimal() and last.strip().isdecimal()):
        raise Failure(f"--layers: {text!r} is no range of layers like 0-14", USAGE)
    return int(first), int(last)


def api_settings(values: dict[str, Any]) -> ApiSettings:
    return ApiSettings(
        host=values["host"],
        port=values["api_port"],
        api_key=values["api_key"] or None,
        drain_seconds=values["drain_seconds"],
    )


def serve(values: dict[str, Any]) -> int:
    """Runs until a signal; the exit code. Wrong settings are refused before anything else
    happens.
    """
    values = {**values, "cache_dir": cache_dir(values["cache_dir"])}
    node, api = node_settings(values), api_settings(values)
    check_flags(values)
    form: Literal["json", "console"] = "json" if wants_json(values["log_format"]) else "console"
    # Is a TextIO.
    configure_logging(form, level=values["log_level"], stream=LateStderr())  # type: ignore[arg-type]
    for variable, meant in misspelt(os.environ):
        _log.warning("unknown variable ignored", variable=variable, meant=meant)
    count_lifecycle()
    return asyncio.run(_serve(node, api, values["health_port"]))


async def _serve(settings: NodeSettings, api: ApiSettings, health_port: int) -> int:
    stop = Stop()
    stop.listen()
    node = build_node(settings)
    server = ApiServer(node, node, node.monitor, api)
    group = compose(node, server, health_port)
    starting = asyncio.create_task(group.initialize(), name="start")
    stopping = asyncio.create_task(stop.asked.wait(), name="wait for a signal")
    try:
        async with startup_bar(node.describe_progress):
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            _log.info("ready", node_id=settings.node_id, model=settings.model, dashboard=server.url)
            await stopping
    except Exception as error:
        failure = explain(error)
        _log.error("start failed", error=str(failure))
        await _close(group)
        stop.ignore()
        raise failure from error
    finally:
        stopping.cancel()
    _log.info("stopping", reason=stop.reason, drain_seconds=settings.drain_seconds)
    await _close_or_hurry(group, node, stop)
    await asyncio.gather(starting, stopping, return_exceptions=True)
    stop.ignore()
    _log.info("stopped")
    _leave_within(LEAVE_SECONDS)
    return 0


def _leave_within(seconds: float) -> None:
    """The interpreter waits for its threads at the end: for one that hangs in an engine,
    for ever.
    """
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


def compose(node: Node, server: ApiServer, health_port: int) -> ResourceGroup:
    """The whole process as one resource; members start from first to last and close in reverse."""
    group = ResourceGroup(resource_id=f"exo-{node.node_id}", resource_type="process")
    node.monitor.register(server, interval=CHECK_SECONDS)
    # The native gRPC probes then say what /readyz says.
    node.monitor.add_readiness("node", lambda: drain_reason(node))
    group.add(server, name="api")
    group.add(
        HealthServer(node.node_id, server.settings.host, node.monitor, port=health_port),
        name="health",
    )
    group.add(node, name="node", depends_on=("api", "health"))
    return group


async def _close_or_hurry(group: ResourceGroup, node: Node, stop: Stop) -> None:
    """Closing the node lets running requests end; a second signal ends them, and the order stays
    the same.
    """
    closing = asyncio.create_task(_close(group), name="close")
    again = asyncio.create_task(stop.again.wait(), name="wait for a second signal")
    await asyncio.wait({closing, again}, return_when=asyncio.FIRST_COMPLETED)
    if not closing.done():
        _log.warning("drain cut short", reason=stop.reason)
        node.entry.abort_all(NodeDraining("this node was told to stop at once"))
    again.cancel()
    await asyncio.gather(closing, again, return_exceptions=True)


async def _close(group: ResourceGroup) -> None:
    """Closes everything in order; what goes wrong while closing is said,
    and changes no exit code.
    """
    try:
        await group.cleanup()
    # Closing goes on to its end, whatever a part has to say.
    except Exception as error:  # noqa: BLE001
        _log.error("cleanup failed", error=str(explain(error)))


class Stop:
    """SIGTERM and SIGINT: the first asks to stop, the second to hurry, later ones change nothing.

    Not by the loop's own handlers: taking those away brings back the deadly default, if only for a
    moment.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.again = asyncio.Event()
        self.reason = ""
        self._hear, self._tell = socket.socketpair()

    def listen(self) -> None:
        for end in (self._hear, self._tell):
            end.setblocking(False)
        signal.set_wakeup_fd(self._tell.fileno(), warn_on_full_buffer=False)
        asyncio.get_running_loop().add_reader(self._hear, self._heard)
        for number in self.SIGNALS:
            # The interpreter writes its number to the socket: that counts.
            signal.signal(number, lambda *_: None)

    def ignore(self) -> None:
        """Everything is closed: a late signal must not turn exit code 0 into a death by that
        signal.
        """
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.set_wakeup_fd(-1)
        asyncio.get_running_loop().remove_reader(self._hear)
        for end in (self._hear, self._tell):
            end.close()

    def _heard(self) -> None:
        for number in self._hear.recv(64):
            if number in self.SIGNALS:
                self.reason = signal.Signals(number).name
                (self.again if self.asked.is_set() else self.asked).set()


def wants_json(chosen: str | None) -> bool:
    """JSON for machines: where nothing else is said, whenever the log is not a terminal."""
    return chosen == "json" if chosen else not sys.stderr.isatty()
