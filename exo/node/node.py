"""`Node`: the parts of one node as one resource, and the `Backend` and `NodeView` that the API
works with.

Its parts start in the order of their dependencies and close in reverse: downloader and engine ->
model and stage -> server -> discovery -> ring. Closing first stops admission and waits for running
requests (see `drain`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar

import numpy as np

from exo.download import ShardDownloader
from exo.inference.engines.inference_engine import InferenceEngine
from exo.inference.engines.memory import free_memory_mib
from exo.inference.errors import InvalidRequest, NodeDraining, RingUnavailable
from exo.inference.generation import GenerationChunk, GenerationRequest
from exo.inference.sampling.constraints import JsonConstraint, check_schema, is_available
from exo.inference.shard import Shard
from exo.inference.text.chat_template import encode_chat
from exo.lifecycle import AsyncResource, ResourceDegraded, ResourceGroup, TaskPriority
from exo.networking.discovery import Discovery
from exo.networking.messages import Open
from exo.networking.peer_handle import PeerHandle
from exo.networking.server import Server
from exo.node import describe
from exo.node.model_loader import LocalModel, ReadModel
from exo.node.settings import NodeSettings
from exo.pipeline.frontend import Frontend, FrontendLimits
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.samplers import SequenceSampler
from exo.pipeline.scheduler import Limits
from exo.pipeline.stage import Stage
from exo.pipeline.transcript import Transcript
from exo.pipeline.watchdog import PassWatchdog
from exo.ring.ring import Ring
from exo.ring.shard_manager import ShardManager
from exo.topology import DeviceCapabilities, Topology, device_capabilities
from exo.utils.health_check import HealthMonitor

log = logging.getLogger(__name__)
TOPOLOGY_SECONDS = 2.0
# Nodes that start together find each other within this: planning alone first would load layers
# twice.
GATHER_SECONDS = 0.5
# How often each part is asked for its health: a fault is to be seen in readiness within a few
# seconds.
CHECK_SECONDS = 1.0
# What the drain leaves of the time to close the parts in.
CLOSING_SECONDS = 30.0
# A stage that is stuck says so itself: an entry gives an attempt up only well after that.
STALL_TIMES = 2.0
# Interpreter, libraries and buffers of a node that holds no model.
PROCESS_MIB = 200


class Node(AsyncResource):
    """`ring` is the handler that server and discovery were built with; see
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
        ring: Ring,
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
        self.id = _id
        self.settings = settings
        self.server = server
        self.inference_engine = inference_engine
        self.discovery = discovery
        self.shard_downloader = shard_downloader
        self.ring = ring
        self.monitor = HealthMonitor()
        self.device_capabilities: DeviceCapabilities | None = None
        self.topology: Topology = ring.view.topology()
        self.model = LocalModel(settings.model, shard_downloader, inference_engine, read_model)
        self.links = Outboxes(_id, ring.deliver, ring.undelivered)
        self.stage = Stage(
            _id,
            inference_engine,
            self.links.send,
            self._sampler,
            limits,
            PassWatchdog(settings.stuck_seconds),
        )
        self.entry = Frontend(
            _id,
            # An id on the wire has 128 characters at most.
            f"{_id[:64]}.{ring.own_offer().incarnation:x}",
            self.links.send,
            ring,
            self._transcript,
            FrontendLimits(
                max_requests=settings.max_requests,
                recovery=settings.recovery_seconds,
                stall=STALL_TIMES * settings.stuck_seconds,
            ),
            ring.pace,
        )
        ring.attach(self.links, self.stage, self.entry)
        self._drained_by: float | None = None
        self._forget_peers: Callable[[], None] | None = None
        self.parts = self._compose()
        # These come back from ERROR by themselves: the engine with its checkpoint loaded again.
        recover = (inference_engine, server, discovery)
        for part in (*self.parts, ring, self):
            self.monitor.register(part, interval=CHECK_SECONDS, recover=part in recover)
        self.monitor.add_readiness("ring formed", lambda: ring.reason or None)
        self.monitor.add_readiness("forward passes", lambda: self.stage.watchdog.reason or None)

    def _compose(self) -> ResourceGroup:
        parts = ResourceGroup(
            resource_id=f"parts-{self.id}", display_name=f"Parts of node {self.id}"
        )
        parts.add(self.shard_downloader, name="downloader")
        parts.add(self.inference_engine, name="engine")
        parts.add(self.model, name="model", depends_on=("downloader", "engine"))
        parts.add(self.links, name="links", depends_on=("engine",))
        parts.add(self.stage, name="stage", depends_on=("links", "engine"))
        parts.add(self.server, name="server", depends_on=("stage", "model"))
        parts.add(self.discovery, name="discovery", depends_on=("server",))
        return parts

    # -- life --------------------------------------------------------------------------------------

    async def start(self, wait_for_peers: int = 0) -> None:
        """The seed's name for `initialize`; also waits until that many peers are connected."""
        await self.initialize()
        if wait_for_peers > 0:
            await self.update_peers(wait_for_peers)

    async def stop(self) -> None:
        """The seed's name for `cleanup`."""
        await self.cleanup()

    async def _do_initialize(self) -> None:
        self._drained_by = None
        self.ring.begin()
        self.entry.admit_again()
        self.device_capabilities = await asyncio.to_thread(
            device_capabilities, self.settings.memory_mib
        )
        await self.monitor.initialize()
        await self.parts.initialize()
        await self._join_ring()
        self._task_manager.start_task(
            "periodic_topology_collection",
            lambda: self.periodic_topology_collection(TOPOLOGY_SECONDS),
            priority=TaskPriority.HIGH,
        )

    async def _join_ring(self) -> None:
        assert self.model.served is not None
        assert self.device_capabilities is not None
        self.ring.view.change(
            memory_mib=offered_mib(self.device_capabilities),
            cores=self.device_capabilities.cores,
            grpc_port=self.server.port,
        )
        footprint = self.model.served.footprint
        self.ring.serve(
            footprint,
            ShardManager(
                self._load,
                self.inference_engine.drop_shard,
                footprint,
                several=self.inference_engine.holds_several,
                free_mib=free_memory_mib,
            ),
        )
        self._forget_peers = self.discovery.on_change(self.ring.on_peers)
        if self.settings.discovery != "none":
            await asyncio.sleep(GATHER_SECONDS)
        await self.update_peers(0)
        await self.ring.initialize()
        await self.ring.wait_settled()
        if self.ring.load_error is not None and not self.peers:
            raise self.ring.load_error  # with peers it stays: they may hold the model without it

    async def _load(self, shard: Shard, *, beside: bool) -> None:
        await self.model.load(shard, beside=beside)
        # `auto` settles on one engine only when it has seen the checkpoint.
        self.ring.view.change(engine=self.inference_engine.active or self.ring.own_offer().engine)

    async def drain(self) -> None:
        """Admit nothing more, tell the peers, wait for what runs: at most `drain_seconds`. May be
        called twice.
        """
        if self._drained_by is None:
            self._drained_by = _now() + self.settings.drain_seconds
            log.info("node %s drains: %d requests run", self.id, self.entry.live)
            self.entry.stop_admission()
            self.ring.leave()
        if not await self.entry.wait_empty(self._drained_by - _now()):
            log.warning("node %s: %d requests were not over in time", self.id, self.entry.live)
        if not await self.ring.wait_released(self._drained_by - _now()):
            log.warning(
                "node %s: its peers still run %d sequences on it", self.id, self.stage.live()
            )

    async def _do_cleanup(self) -> None:
        if self.ring.is_initialized:
            await self.drain()
        self.entry.abort_all(NodeDraining(f"node {self.id!r} is closed"))
        if self._forget_peers is not None:
            self._forget_peers()
            self._forget_peers = None
        errors: list[Exception] = []
        for close in (self.ring.cleanup, self.parts.cleanup, self.monitor.cleanup):
            try:
                await close()
            # The rest is closed all the same, and all of it is raised.
            except Exception as error:  # noqa: BLE001
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"node {self.id!r}: cleanup", errors)

    async def _do_health_check(self) -> bool:
        """As healthy as its parts. An ailing part only degrades the node: it recovers or not, the
        others go on.
        """
        parts = (self.server, self.discovery, self.inference_engine, self.stage)
        healthy = await asyncio.gather(*(part.check_health() for part in parts))
        ailing = [part.resource_id for part, well in zip(parts, healthy, strict=True) if not well]
        if ailing:
            raise ResourceDegraded(
                f"not healthy: {', '.join(ailing)}", resource_id=self.resource_id, state=self.state
            )
        return True

    # -- peers and topology ------------------------------------------------------------------------

    @property
    def peers(self) -> list[PeerHandle]:
        return self.discovery.peers()

    async def update_peers(self, wait_for_peers: int = 0) -> bool:
        """Take over who is connected; whether that changed anything."""
        before = set(self.ring.view.handles)
        self.ring.on_peers(await self.discovery.discover_peers(wait_for_peers))
        return before != set(self.ring.view.handles)

    async def collect_topology(self, visited: set[str] | None = None) -> Topology:
        """From the newest offers: peers send theirs with every heartbeat, so nobody has to be
        asked.
        """
        self.topology = self.ring.view.topology()
        return self.topology

    async def periodic_topology_collection(self, interval: float) -> None:
        while True:
            await asyncio.sleep(interval)
            await self.update_peers(0)
            await self.collect_topology()

    # -- Backend -----------------------------------------------------------------------------------

    def models(self) -> list[dict[str, Any]]:
        served = self.model.served
        if served is None:
            return []
        return [
            {
                "id": served.model_id,
                "object": "model",
                "created": served.created,
                "owned_by": "exo",
                "context_length": served.context_length,
            }
        ]

    async def render_chat(
        self,
        model_id: str,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
    ) -> tuple[int, ...]:
        tokenizer = self.model.require(model_id).require_tokenizer()
        return tuple(await asyncio.to_thread(encode_chat, tokenizer, messages, tools))

    async def render_prompt(self, model_id: str, prompt: str) -> tuple[int, ...]:
        tokenizer = self.model.require(model_id).require_tokenizer()
        return tuple(await asyncio.to_thread(tokenizer.encode_prompt, prompt))

    def token_bytes(self, model_id: str, token: int) -> bytes:
        tokenizer = self.model.require(model_id).tokenizer
        return b"" if tokenizer is None else tokenizer.token_bytes(token, skip_special=False)

    async def process_tokens(
        self, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """See `Backend.process_tokens`."""
        checked, schema = self._check(request), request.params.json_schema
        if schema is not None:
            served = self.model.require(request.model_id)
            await asyncio.to_thread(
                check_schema, served.tokenizer, schema, served.ends, served.vocab
            )
        async with contextlib.aclosing(self.entry.generate(checked)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def process_prompt(
        self,
        base_shard: Shard,
        prompt: str,
        request_id: str | None = None,
        inference_state: dict[str, Any] | None = None,
    ) -> np.ndarray[Any, Any]:
        """The whole answer as token ids; `inference_state["max_tokens"]` bounds it (128 where it is
        not given).
        """
        await self.ensure_ready()
        tokens: list[int] = []
        request = GenerationRequest(
            request_id=request_id or secrets.token_hex(8),
            model_id=base_shard.model_id,
            prompt_tokens=await self.render_prompt(base_shard.model_id, prompt),
            max_tokens=int((inference_state or {}).get("max_tokens", 128)),
        )
        async with contextlib.aclosing(self.process_tokens(request)) as chunks:
            async for chunk in chunks:
                tokens += chunk.tokens
        return np.asarray(tokens, dtype=np.int64)

    def _check(self, request: GenerationRequest) -> GenerationRequest:
        if self._drained_by is not None:
            raise NodeDraining(f"node {self.id!r} is leaving: ask another one")
        if not self.is_usable:
            raise RingUnavailable(f"node {self.id!r} is {self.state.name.lower()}")
        served = self.model.require(request.model_id)
        if not request.prompt_tokens:
            raise InvalidRequest("the prompt has no tokens", field="prompt")
        request.check_tokens(served.vocab)
        return request.fitted(served.context_length)

    def _sampler(self, opened: Open) -> SequenceSampler:
        """The last stage's, of a sequence of any entry. Raises `InvalidRequest`."""
        schema, served = opened.params.json_schema, self.model.served
        if schema is None:
            return SequenceSampler(opened)
        if served is None or served.tokenizer is None or not is_available():
            raise InvalidRequest(
                "this stage cannot constrain answers to a JSON schema", field="json_schema"
            )
        return SequenceSampler(
            opened, JsonConstraint(served.tokenizer, schema, served.ends, served.vocab)
        )

    def _transcript(self, request: GenerationRequest) -> Transcript:
        served = self.model.require(request.model_id)
        return Transcript.of(request, served.tokenizer, served.ends)

    # -- NodeView ----------------------------------------------------------------------------------

    @property
    def node_id(self) -> str:
        return self.id

    @property
    def is_draining(self) -> bool:
        return self._drained_by is not None

    def describe_topology(self) -> dict[str, Any]:
        return describe.topology(self.ring)

    def describe_ring(self) -> dict[str, Any]:
        served = self.model.served
        return describe.ring(
            self.ring, served.model_id if served else "", served.n_layers if served else 0
        )

    def describe_requests(self) -> list[dict[str, Any]]:
        return self.entry.describe() if self.entry.live else []

    def describe_progress(self) -> str | None:
        if self._drained_by is not None:
            return f"draining: {self.entry.live} requests run"
        return self.model.progress


def offered_mib(capabilities: DeviceCapabilities) -> int:
    """What is left for the model once the process itself has its share; a cap of the user's counts
    as it is.
    """
    most = capabilities.host_memory_mib
    if capabilities.cgroup_limit_mib is not None:
        most = min(most, capabilities.cgroup_limit_mib)
    return max(0, min(capabilities.memory_mib, most - PROCESS_MIB))


def _now() -> float:
    return asyncio.get_running_loop().time()
