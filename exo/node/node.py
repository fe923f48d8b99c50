"""`Node`: the parts of one node, put together and started and closed as one resource.

The parts start in the order of their dependencies and close in reverse: downloader and engine ->
model and stage -> server -> discovery -> ring. Closing first stops admission and waits for running
requests (see `drain`). What the HTTP API asks of a node is in `exo.node.backend`; what a node shows
of itself is in `exo.node.describe`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar

import numpy as np

from exo.download import ShardDownloader
from exo.inference.engines.inference_engine import InferenceEngine
from exo.inference.engines.memory import free_memory_mib
from exo.inference.errors import NodeDraining, RingUnavailable
from exo.inference.generation import GenerationChunk, GenerationRequest
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource, ResourceDegraded, TaskPriority
from exo.networking.discovery import Discovery
from exo.networking.peer_handle import PeerHandle
from exo.networking.server import Server
from exo.node import describe
from exo.node.backend import NodeBackend
from exo.node.model_loader import LocalModel, ReadModel
from exo.node.offer import offered_mib
from exo.node.parts import Part, ailing, group_of
from exo.node.settings import NodeSettings
from exo.pipeline.frontend import Frontend, FrontendLimits
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.scheduler import Limits
from exo.pipeline.stage import Stage
from exo.pipeline.watchdog import PassWatchdog
from exo.ring.plan_in_force import PlanInForce
from exo.ring.ring import Ring
from exo.ring.router import Receivers, Router
from exo.ring.shard_manager import ShardManager
from exo.topology import DeviceCapabilities, Topology, device_capabilities
from exo.utils.health_check import HealthMonitor

log = logging.getLogger(__name__)
TOPOLOGY_SECONDS = 2.0
# Nodes that start together find each other within this. Planning alone first would load layers
# twice.
GATHER_SECONDS = 0.5
# How often each part's health is checked: a fault is to show in readiness within a few seconds.
CHECK_SECONDS = 1.0
# What a drain leaves of the cleanup time-out to close the parts in.
CLOSING_SECONDS = 30.0
# A stage that is stuck says so itself. An entry node gives an attempt up only well after that.
STALL_TIMES = 2.0


class Node(AsyncResource):
    """router: the handler that `server` and `discovery` were built with; see
    `exo.node.build.build_node`.
    """

    RESOURCE_TYPE: ClassVar[str] = "node"

    def __init__(
        self,
        _id: str,
        server: Server,
        inference_engine: InferenceEngine,
        discovery: Discovery,
        shard_downloader: ShardDownloader,
        *,
        router: Router,
        read_model: ReadModel,
        settings: NodeSettings,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(
            resource_id=f"node-{_id}",
            display_name=f"Node {_id}",
            initialize_timeout=settings.initialize_timeout,
            cleanup_timeout=settings.drain_seconds + CLOSING_SECONDS,
        )
        self.id, self.settings = _id, settings
        self.server, self.discovery = server, discovery
        self.inference_engine, self.shard_downloader = inference_engine, shard_downloader
        self.router, self.view = router, router.view
        self.device_capabilities: DeviceCapabilities | None = None
        self.topology: Topology = self.view.topology()
        self._drained_by: float | None = None
        self._forget_peers: Callable[[], None] | None = None
        self._compose(read_model, limits)
        self._parts = self._table()
        self.parts = group_of(_id, self._parts)
        self.monitor = self._monitor()

    # -- composition -------------------------------------------------------------------------------

    def _compose(self, read_model: ReadModel, limits: Limits | None) -> None:
        """Make the parts that this node owns, each whole, and bind the router to them."""
        engine, router = self.inference_engine, self.router
        self.model = LocalModel(self.settings.model, self.shard_downloader, engine, read_model)
        self.outboxes = Outboxes(self.id, router.undelivered)
        watchdog = PassWatchdog(self.settings.stuck_seconds)
        self.stage = Stage(self.id, engine, router.send, self.model.sampler, limits, watchdog)
        shards = ShardManager(
            self._load,
            engine.drop_shard,
            self.model.footprint,
            several=engine.holds_several,
            free_mib=free_memory_mib,
        )
        in_force = PlanInForce(shards.fault)
        self.frontend = self._make_frontend(in_force)
        view, model = self.view, self.model.footprint
        self.ring = Ring(view, self.outboxes, self.stage, self.frontend, shards, in_force, model)
        self.backend = NodeBackend(self.model, self.frontend, self._check_usable)
        router.bind(
            Receivers(
                stage=self.stage,
                frontend=self.frontend,
                outboxes=self.outboxes,
                peers=self.ring.peer_events,
            )
        )

    def _make_frontend(self, in_force: PlanInForce) -> Frontend:
        return Frontend(
            self.id,
            # An id on the wire has 128 characters at most.
            f"{self.id[:64]}.{self.view.own_offer().incarnation:x}",
            self.router.send,
            in_force,
            self.model.transcript,
            FrontendLimits(
                max_requests=self.settings.max_requests,
                recovery=self.settings.recovery_seconds,
                stall=STALL_TIMES * self.settings.stuck_seconds,
            ),
            self.view.pace,
        )

    def _table(self) -> tuple[Part, ...]:
        """Each part once: this is what starts, closes, is checked and is shown."""
        return (
            Part("downloader", self.shard_downloader),
            # Recovers with its checkpoints loaded again.
            Part("engine", self.inference_engine, recovers=True),
            Part("model", self.model, needs=("downloader", "engine")),
            Part("links", self.outboxes, needs=("engine",)),
            Part("stage", self.stage, needs=("links", "engine")),
            Part("server", self.server, needs=("stage", "model"), recovers=True),
            Part("discovery", self.discovery, needs=("server",), recovers=True),
        )

    def _monitor(self) -> HealthMonitor:
        monitor = HealthMonitor()
        for part in (*self._parts, Part("ring", self.ring), Part("node", self)):
            monitor.register(part.resource, interval=CHECK_SECONDS, recover=part.recovers)
        monitor.add_readiness("ring formed", lambda: self.ring.reason or None)
        monitor.add_readiness("forward passes", lambda: self.stage.watchdog.reason or None)
        return monitor

    # -- life --------------------------------------------------------------------------------------

    async def start(self, wait_for_peers: int = 0) -> None:
        """`initialize`, then wait until that many peers are connected."""
        await self.initialize()
        if wait_for_peers > 0:
            await self.update_peers(wait_for_peers)

    async def stop(self) -> None:
        """Another name for `cleanup`."""
        await self.cleanup()

    async def _do_initialize(self) -> None:
        self._drained_by = None
        self.ring.begin()
        self.frontend.admit_again()
        # Before anything is loaded: what is offered is shared out among all that will be.
        capabilities = await asyncio.to_thread(device_capabilities, self.settings.memory_mib)
        self.device_capabilities = capabilities
        await self.monitor.initialize()
        await self.parts.initialize()
        await self._join_ring(capabilities)
        self._task_manager.start_task(
            "periodic_topology_collection",
            lambda: self.periodic_topology_collection(TOPOLOGY_SECONDS),
            priority=TaskPriority.HIGH,
        )

    async def _join_ring(self, capabilities: DeviceCapabilities) -> None:
        model = self.model.footprint()
        # Known only now that the parts are up.
        self.view.change(
            memory_mib=offered_mib(capabilities),
            cores=capabilities.cores,
            grpc_port=self.server.port,
            model_id=model.model_id,
            model_hash=model.model_hash,
        )
        self._forget_peers = self.discovery.on_change(self.ring.peer_events.on_peers)
        if self.settings.discovery != "none":
            await asyncio.sleep(GATHER_SECONDS)
        await self.update_peers(0)
        await self.ring.initialize()
        await self.ring.wait_settled()
        if self.ring.load_error is not None and not self.peers:
            raise self.ring.load_error  # with peers it stays: they may hold the model without it

    async def _load(self, shard: Shard, *, keep_others: bool) -> None:
        await self.model.load(shard, keep_others=keep_others)
        # `auto` settles on one engine only when it has seen the checkpoint.
        self.view.change(engine=self.inference_engine.active or self.view.own_offer().engine)

    async def _do_cleanup(self) -> None:
        if self.ring.is_initialized:
            await self.drain()
        self.frontend.abort_all(NodeDraining(f"node {self.id!r} is closed"))
        if self._forget_peers is not None:
            self._forget_peers()
            self._forget_peers = None
        errors: list[Exception] = []
        for close in (self.ring.cleanup, self.parts.cleanup, self.monitor.cleanup):
            try:
                await close()
            # The rest is closed all the same, and all errors are raised together.
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"node {self.id!r}: cleanup", errors)

    async def _do_health_check(self) -> bool:
        """As healthy as its parts. An ailing part only degrades the node: that part may recover,
        and the others go on meanwhile.
        """
        if names := await ailing(self._parts):
            raise ResourceDegraded(
                f"not healthy: {', '.join(names)}", resource_id=self.resource_id, state=self.state
            )
        return True

    # -- draining ----------------------------------------------------------------------------------

    @property
    def is_draining(self) -> bool:
        """From the start of a drain to the next life of the node."""
        return self._drained_by is not None

    async def drain(self) -> None:
        """Admit nothing more, tell the peers, and wait at most `drain_seconds` for what runs. May
        be called twice.
        """
        if self._drained_by is None:
            self._drained_by = _now() + self.settings.drain_seconds
            log.info("node %s drains: %d requests run", self.id, self.frontend.live)
            self.frontend.stop_admission()
            self.ring.leave()
        if not await self.frontend.wait_empty(self._drained_by - _now()):
            log.warning("node %s: %d requests were not over in time", self.id, self.frontend.live)
        if not await self.ring.wait_released(self._drained_by - _now()):
            log.warning(
                "node %s: its peers still run %d sequences on it", self.id, self.stage.live()
            )

    def abort_requests(self, reason: str) -> None:
        """End all requests that came in here, at once: their callers get `NodeDraining`."""
        self.frontend.abort_all(NodeDraining(reason))

    def _check_usable(self) -> None:
        if not self.is_usable:
            raise RingUnavailable(f"node {self.id!r} is {self.state.name.lower()}")

    # -- peers and topology ------------------------------------------------------------------------

    @property
    def peers(self) -> list[PeerHandle]:
        return self.discovery.peers()

    async def update_peers(self, wait_for_peers: int = 0) -> bool:
        """Take over which peers are connected. Returns whether that changed anything."""
        before = set(self.view.handles)
        self.ring.peer_events.on_peers(await self.discovery.discover_peers(wait_for_peers))
        return before != set(self.view.handles)

    async def collect_topology(self, visited: set[str] | None = None) -> Topology:
        """From the newest offers. Peers send theirs with every heartbeat, so none is asked, and
        `visited` has no effect.
        """
        del visited
        self.topology = self.view.topology()
        return self.topology

    async def periodic_topology_collection(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self.update_peers(0)
            await self.collect_topology()

    # -- answers -----------------------------------------------------------------------------------

    def process_tokens(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk, None]:
        """See `NodeBackend.process_tokens`."""
        return self.backend.process_tokens(request)

    async def process_prompt(
        self,
        base_shard: Shard,
        prompt: str,
        request_id: str | None = None,
        inference_state: dict[str, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """The whole answer as token ids. `inference_state["max_tokens"]` bounds it; without it, 128
        tokens do.
        """
        await self.ensure_ready()
        most = int((inference_state or {}).get("max_tokens", 128))
        tokens = await self.backend.answer(
            base_shard.model_id, prompt, request_id=request_id, max_tokens=most
        )
        return np.asarray(tokens, dtype=np.int64)

    # -- NodeView ----------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self.id

    def describe_topology(self) -> dict[str, Any]:
        return describe.topology(self.view)

    def describe_ring(self) -> dict[str, Any]:
        return describe.ring(self.ring, self.model.served)

    def describe_requests(self) -> list[dict[str, Any]]:
        return self.frontend.describe() if self.frontend.live else []

    def describe_progress(self) -> str | None:
        if self.is_draining:
            return f"draining: {self.frontend.live} requests run"
        return self.model.progress


def _now() -> float:
    return asyncio.get_running_loop().time()
