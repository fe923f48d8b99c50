"""`build_node`: makes the parts that the settings ask for, and a node of them. The only place that
chooses implementations.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from exo.contract import DiscoveryName
from exo.download import LocalShardDownloader, ModelSource, ShardDownloader, hub_names
from exo.inference.checkpoints.catalog import model_id_of
from exo.inference.engines.factory import create_pool, has_onnxruntime
from exo.inference.engines.options import EngineOptions, default_cache_dir
from exo.networking.discovery import Discovery, PeerFactory
from exo.networking.dns.dns_discovery import DnsDiscovery
from exo.networking.grpc.grpc_peer_handle import GRPCPeerHandle
from exo.networking.grpc.grpc_server import GRPCServer
from exo.networking.grpc.tls import TlsFiles
from exo.networking.hello import Membership
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.peer_handle import PeerHandle
from exo.networking.pooled_discovery import NoDiscovery
from exo.networking.udp.udp_discovery import UDPDiscovery
from exo.node.node import Node
from exo.node.offer import first_offer
from exo.node.served_model import ServedModel, read_model
from exo.node.settings import NodeSettings
from exo.ring.membership_view import MembershipView
from exo.ring.router import Router


def build_node(settings: NodeSettings) -> Node:
    """Nothing is opened yet: `initialize` does that. Raises `InvalidRequest` or `ValueError` naming
    a wrong setting.
    """
    engine = create_pool(settings.engine, engine_options(settings))
    name = engine_name(settings)
    router = Router(MembershipView(first_offer(settings, model_id(settings.model), name)))
    membership = Membership(cluster=settings.cluster, secret=settings.secret)
    tls = _tls(settings)
    server = GRPCServer(
        settings.node_id, settings.host, settings.grpc_port, router, membership, tls=tls
    )

    def connect(node_id: str | None, address: str, port: int) -> PeerHandle:
        return GRPCPeerHandle(
            node_id, address, port, handler=router, membership=membership, tls=tls
        )

    peers = _Peers(
        settings, membership, router.own_offer().incarnation, connect, lambda: server.port
    )
    return Node(
        settings.node_id,
        server,
        engine,
        DISCOVERIES[settings.discovery](peers),
        _downloader(settings),
        router=router,
        read_model=functools.partial(_read, settings, name),
        settings=settings,
    )


def engine_options(settings: NodeSettings) -> EngineOptions:
    """Those of the settings; converted weights go to the node's own cache folder."""
    options = settings.engine_options
    if options.cache_dir is not None or settings.cache_dir is None:
        return options
    return replace(options, cache_dir=settings.cache_dir)


def engine_name(settings: NodeSettings) -> str:
    """What `auto` will most likely be; the offer tells once the model is loaded."""
    if settings.engine == "auto":
        return "onnx" if has_onnxruntime() else "numpy"
    return settings.engine


def _read(settings: NodeSettings, engine: str, source: ModelSource) -> ServedModel:
    return read_model(
        source.model_id,
        source.path,
        engine,
        revision=source.revision,
        context_length=settings.context_length,
        weights_here=source.weights_here,
    )


def _downloader(settings: NodeSettings) -> ShardDownloader:
    if not hub_names.is_hub_name(settings.model):
        return LocalShardDownloader(settings.models_dir)
    from exo.download.hub_downloader import HubShardDownloader

    return HubShardDownloader(
        settings.cache_dir or default_cache_dir(),
        revision=settings.hub_revision,
        token=settings.hub_token,
        offline=settings.offline,
        endpoint=settings.hub_endpoint,
        models_dir=settings.models_dir,
    )


def model_id(model: str) -> str:
    """What the API calls it. Raises `InvalidRequest` for a name of a hub that is none."""
    return hub_names.parse(model).model_id if hub_names.is_hub_name(model) else model_id_of(model)


def _tls(settings: NodeSettings) -> TlsFiles | None:
    if settings.tls_cert is None or settings.tls_key is None or settings.tls_ca is None:
        return None
    return TlsFiles(
        certificate=settings.tls_cert,
        key=settings.tls_key,
        authority=settings.tls_ca,
        check_identity=settings.tls_check_identity,
    )


@dataclass(frozen=True, slots=True)
class _Peers:
    """What any discovery can be made from. port: of this node's server, known once it listens."""

    settings: NodeSettings
    membership: Membership
    incarnation: int
    connect: PeerFactory
    port: Callable[[], int]


def _no_discovery(peers: _Peers) -> Discovery:
    return NoDiscovery(peers.settings.node_id, peers.connect)


def _udp(peers: _Peers) -> Discovery:
    return UDPDiscovery(
        peers.settings.node_id,
        peers.port,
        peers.connect,
        peers.membership,
        port=peers.settings.discovery_port,
        incarnation=peers.incarnation,
    )


def _manual(peers: _Peers) -> Discovery:
    config = peers.settings.discovery_config
    assert config is not None  # checked by the settings
    return ManualDiscovery(peers.settings.node_id, config, peers.connect)


def _dns(peers: _Peers) -> Discovery:
    settings = peers.settings
    return DnsDiscovery(
        settings.node_id, settings.discovery_name, peers.connect, port=settings.grpc_port
    )


# Every name of `exo.contract.DISCOVERIES`.
DISCOVERIES: Final[Mapping[DiscoveryName, Callable[[_Peers], Discovery]]] = {
    "none": _no_discovery,
    "udp": _udp,
    "manual": _manual,
    "dns": _dns,
}
