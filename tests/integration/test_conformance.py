"""No resource of `exo` is forgotten: each concrete one passes the conformance suite, here or where
its own tests are.

The other packages' resources run it with their unit tests, with real sockets and files; those
named here are what has no such place. The guard walks all packages, so that a new resource fails it
until it is put on one of the lists.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_checkpoint import write_folder

import exo
from exo.inference.engines.engine import Engine
from exo.inference.engines.fallback import FallbackRunner
from exo.inference.engines.options import EngineOptions
from exo.inference.numpy.engine import NumpyEngine, NumpyRunner
from exo.inference.shard import Shard
from exo.lifecycle import AsyncResource, ResourceGroup
from exo.lifecycle.testing.conformance import check_resource
from exo.node.build import build_node
from exo.node.served_model import made_up_model
from exo.node.settings import NodeSettings
from exo.ring.plan_in_force import PlanInForce
from exo.ring.ring import Ring
from exo.ring.shard_manager import ShardManager
from exo.utils.health_check import HealthMonitor

TESTS = Path(__file__).parent.parent


class Part(AsyncResource):
    pass


def monitor() -> AsyncResource:
    made = HealthMonitor()
    made.register(Part(resource_id="watched"), interval=0.01, required=False, recover=True)
    return made


def group() -> AsyncResource:
    made = ResourceGroup()
    for name, needs in (("c", ["b"]), ("b", ["a"]), ("a", [])):
        made.add(Part(resource_id=name), depends_on=needs)
    return made


def ring() -> AsyncResource:
    """With a node's parts, which stay closed, and a model that takes no time to load."""
    node = build_node(
        NodeSettings(node_id="n", engine="dummy", model="dummy", host="127.0.0.1", grpc_port=0)
    )
    footprint = made_up_model("dummy").footprint

    async def load(shard: Shard, *, keep_others: bool) -> None:
        await asyncio.sleep(0)

    async def drop(shard: Shard) -> None:
        await asyncio.sleep(0)

    shards = ShardManager(load, drop, lambda: footprint, several=True, free_mib=lambda: 1000)
    return Ring(
        node.view,
        node.outboxes,
        node.stage,
        node.frontend,
        shards,
        PlanInForce(shards.fault),
        lambda: footprint,
    )


HERE: dict[str, Callable[[], AsyncResource]] = {
    "HealthMonitor": monitor,
    "ResourceGroup": group,
    "Ring": ring,
}

# Where its own tests make it, by a function of another name.
MADE_BY = {"ApiServer": "server(", "GRPCPeerHandle": "make_handle(", "GRPCServer": "make_server("}

ELSEWHERE = {
    "ApiServer": "unit/api/test_server.py",
    "DnsDiscovery": "unit/networking/test_conformance.py",
    "DummyEngine": "unit/inference/engines/test_dummy.py",
    "EnginePool": "unit/inference/engines/test_engine_pool.py",
    "GRPCPeerHandle": "unit/networking/test_conformance.py",
    "GRPCServer": "unit/networking/test_conformance.py",
    "HealthServer": "unit/networking/test_conformance.py",
    "HubShardDownloader": "unit/download/test_hub.py",
    "Outboxes": "unit/node/test_conformance.py",
    "LocalModel": "unit/node/test_conformance.py",
    "LocalShardDownloader": "unit/node/test_conformance.py",
    "ManualDiscovery": "unit/networking/test_conformance.py",
    "NoDiscovery": "unit/networking/test_conformance.py",
    "Node": "unit/node/test_conformance.py",
    "NumpyEngine": "unit/inference/engines/test_numpy_engine.py",
    "OnnxEngine": "unit/onnx/test_onnx_conformance.py",
    "Stage": "unit/node/test_conformance.py",
    "UDPDiscovery": "unit/networking/test_conformance.py",
}


@pytest.mark.parametrize("name", HERE)
async def test_it_conforms(name: str) -> None:
    await check_resource(HERE[name])


class LoadingFallback(Engine):
    """With a checkpoint loaded in its init hook, so that there is something to lose; the first
    engine cannot run it.
    """

    def __init__(self, folder: Path) -> None:
        options = EngineOptions(kv_budget=1 << 20)
        super().__init__(
            FallbackRunner(
                {"broken": lambda: Unable(options), "numpy": lambda: NumpyRunner(options)}
            )
        )
        self.folder = folder

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        await self._load_checkpoint(Shard(self.folder.name, 0, 2, 3), self.folder)


class Unable(NumpyRunner):
    def load(self, *arguments: object) -> None:
        raise RuntimeError("this engine cannot run it")


async def test_an_engine_with_a_fallback_and_a_loaded_checkpoint_conforms(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "tiny")
    await check_resource(lambda: LoadingFallback(folder))


async def test_an_engine_that_recovers_has_its_checkpoint_again_and_a_new_life_has_not(
    tmp_path: Path,
) -> None:
    folder, shard = write_folder(tmp_path / "tiny"), Shard("tiny", 0, 2, 3)
    engine = NumpyEngine(kv_budget=1 << 20, failure_threshold=1)
    await engine.initialize()
    await engine.load_checkpoint(shard, folder)
    worker = engine._worker
    assert worker is not None
    engine._worker = None  # what its health check looks for
    assert not await engine.check_health()
    engine._worker = worker
    assert await engine.recover()
    assert engine.shard == shard
    await engine.cleanup()
    await engine.initialize()
    assert engine.shard is None
    await engine.cleanup()


def concrete() -> set[str]:
    """Names of all resources that can be made, in every module of `exo`."""
    found = set()
    for module in pkgutil.walk_packages(exo.__path__, "exo."):
        if module.name.endswith("__main__"):
            continue
        for name, kind in vars(importlib.import_module(module.name)).items():
            own = inspect.isclass(kind) and kind.__module__ == module.name and kind.__name__ == name
            if own and issubclass(kind, AsyncResource) and not inspect.isabstract(kind):
                found.add(name)
    # Bases that nobody makes by themselves, although they have no abstract method.
    return found - {"AsyncResource", "PooledDiscovery"}


def test_no_resource_is_forgotten() -> None:
    assert concrete() == {*HERE, *ELSEWHERE, "Engine"}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_checked_elsewhere_is(name: str) -> None:
    text = (TESTS / ELSEWHERE[name]).read_text()
    assert "check_resource(" in text
    assert MADE_BY.get(name, name) in text
