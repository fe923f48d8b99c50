"""Whole nodes in one process with the dummy engine, and what tests of a ring ask of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

from loopback_net import LoopbackDiscovery, LoopbackServer, Net
from waiting import eventually

from exo.download import LocalShardDownloader, ModelSource
from exo.inference.engines.dummy import DummyEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.engines.inference_engine import InferenceEngine
from exo.inference.generation import GenerationChunk, GenerationRequest
from exo.inference.sampling.params import SamplingParams
from exo.node.node import Node
from exo.node.served_model import ServedModel, made_up_model
from exo.node.settings import NodeSettings
from exo.pipeline.scheduler import Limits
from exo.ring.membership_view import MembershipView
from exo.ring.router import Router
from exo.topology import ModelFootprint, NodeOffer

MIB = 1024 * 1024
_incarnations = itertools.count(1)


def make_node(
    net: Net,
    node_id: str,
    *,
    layer_mib: int = 0,
    limits: Limits | None = None,
    engine: InferenceEngine | None = None,
    step_seconds: float = 0.0,
    **settings: Any,
) -> Node:
    """A node with the dummy engine (several shards at once, as `build_node` makes it, unless
    `engine` is given).

    layer_mib: what a layer takes of `memory_mib`.
    """
    chosen = NodeSettings(
        node_id=node_id,
        engine="dummy",
        model="dummy",
        **{"drain_seconds": 5.0, "recovery_seconds": 5.0, **settings},
    )
    offer = NodeOffer(
        node_id=node_id, incarnation=next(_incarnations), model_id="dummy", engine="dummy"
    )
    router = net.routers[node_id] = Router(MembershipView(offer))

    def read(source: ModelSource) -> ServedModel:
        model = made_up_model(source.model_id)
        footprint = ModelFootprint.uniform(source.model_id, model.n_layers, layer_mib * MIB or 1)
        return replace(model, footprint=footprint, path=Path("dummy"))

    return Node(
        node_id,
        LoopbackServer(node_id),
        engine or EnginePool(lambda: DummyEngine(step_seconds=step_seconds)),
        LoopbackDiscovery(node_id, net),
        LocalShardDownloader(),
        router=router,
        read_model=read,
        settings=chosen,
        limits=limits,
    )


def ask(
    tokens: tuple[int, ...] = (10, 20, 30),
    max_tokens: int = 20,
    *,
    request_id: str = "r",
    **fields: Any,
) -> GenerationRequest:
    params = fields.pop("params", SamplingParams(temperature=0.0))
    return GenerationRequest(
        request_id=request_id,
        model_id="dummy",
        prompt_tokens=tokens,
        max_tokens=max_tokens,
        params=params,
        **fields,
    )


async def answer(node: Node, request: GenerationRequest) -> list[int]:
    tokens, _ = await whole(node, request)
    return tokens


async def whole(node: Node, request: GenerationRequest) -> tuple[list[int], GenerationChunk]:
    """All tokens, and the last chunk."""
    tokens: list[int] = []
    async for chunk in node.process_tokens(request):
        tokens += chunk.tokens
    return tokens, chunk


until = eventually


async def formed(nodes: list[Node], stages: int, timeout: float = 10.0) -> None:
    """Until every node has the same plan of that many stages in force."""
    await eventually(lambda: _agree(nodes, stages), timeout)


def _agree(nodes: list[Node], stages: int) -> bool:
    plans = {node.ring.plan for node in nodes}
    (plan, *others) = plans
    return not others and plan is not None and len(plan.stages) == stages


def leftovers(node: Node) -> dict[str, int]:
    """What a node that has no request must have none of."""
    counts = {
        "requests": node.frontend.live,
        "sequences": node.stage.live(),
        "kv": node.inference_engine.sequences,
        "queued": node.outboxes.queued,
    }
    return {name: count for name, count in counts.items() if count}
