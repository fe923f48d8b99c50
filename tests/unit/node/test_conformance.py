"""Every resource of a node passes the conformance suite of the lifecycle."""

from __future__ import annotations

import pytest
from loopback import Net, make_node

from exo.download import LocalShardDownloader
from exo.inference.engines.dummy import DummyEngine
from exo.lifecycle import AsyncResource
from exo.lifecycle.testing.conformance import check_resource
from exo.node.build import build_node
from exo.node.model_loader import LocalModel
from exo.node.node import Node
from exo.node.served_model import made_up_model
from exo.node.settings import NodeSettings
from exo.pipeline.outboxes import Outboxes
from exo.pipeline.samplers import SequenceSampler
from exo.pipeline.stage import Stage


def outboxes() -> AsyncResource:
    return Outboxes("n", lambda node, message, reason, retryable=True: None)


def stage() -> AsyncResource:
    return Stage("n", DummyEngine(), lambda node, message: None, SequenceSampler)


async def local_model() -> AsyncResource:
    return LocalModel(
        "dummy",
        LocalShardDownloader(),
        DummyEngine(),
        lambda source: made_up_model(source.model_id),
    )


@pytest.mark.parametrize(
    "factory", [outboxes, stage, local_model, LocalShardDownloader], ids=lambda each: each.__name__
)
async def test_a_part_of_a_node_conforms(factory: object) -> None:
    await check_resource(factory)  # type: ignore[arg-type]


def loopback_node() -> Node:
    return make_node(Net(), "n")


def grpc_node() -> Node:
    return build_node(
        NodeSettings(node_id="n", engine="dummy", model="dummy", host="127.0.0.1", grpc_port=0)
    )


@pytest.mark.parametrize("factory", [loopback_node, grpc_node], ids=lambda each: each.__name__)
async def test_a_node_conforms(factory: object) -> None:
    await check_resource(factory, points=6)  # type: ignore[arg-type]


async def test_parts_close_in_the_reverse_order_of_their_dependencies() -> None:
    node = make_node(Net(), "n")
    closed: list[str] = []
    for part in (*node.parts, node.ring, node):
        part.add_listener(
            lambda change: (
                closed.append(change.resource_type) if change.new.name == "CLOSED" else None
            )
        )
    await node.initialize()
    await node.cleanup()
    order = ["ring", "discovery", "server", "stage", "links", "inference_engine", "node"]
    assert [kind for kind in closed if kind in order] == order
