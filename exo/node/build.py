"""`build_node`: the parts that the settings ask for, put together. The only place that chooses
implementations.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace

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
from exo.node.served_model import ServedModel, read_model
from exo.node.settings import NodeSettings
from exo.ring.membership_view import MembershipView
from exo.ring.router import Router
from exo.topology import NodeOffer


def build_node(settings: NodeSettings) -> Node:
    """Nothing is opened yet: `initialize` does that. Raises `InvalidRequest` or `ValueError` naming
    a wrong setting.
    """
    engine = create_pool(settings.engine, engine_options(settings))
    name = engine_name(settings)
    router = Router(MembershipView(first_offer(settings, name)))
    membership = Membership(cluster=settings.cluster, secret=settings.secret)
    tls = _tls(settings)
    server = GRPCServer(
        settings.node_id, settings.host, settings.grpc_port, router, membership, tls=tls
    )

    def connect(node_id: str | None, address: str, port: int) -> PeerHandle:
        return GRPCPeerHandle(
            node_id, address, port, handler=router, membership=membership, tls=tls
        )

    return Node(
        settings.node_id,
        server,
        engine,
        _discovery(
            settings, membership, router.own_offer().incarnation, connect, lambda: server.port
        ),
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


def first_offer(settings: NodeSettings, engine: str) -> NodeOffer:
    """What the node says of itself before it knows its memory and ports. The incarnation is the
    time of the start.
    """
    return NodeOffer(
        node_id=settings.node_id,
        incarnation=time.time_ns(),
        address=settings.advertise_host,
        api_port=settings.api_port,
        model_id=model_id(settings.model),
        engine=engine,
        pinned=settings.pinned,
    )


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


def _discovery(
    settings: NodeSettings,
    membership: Membership,
    incarnation: int,
    connect: PeerFactory,
    port: Callable[[], int],
) -> Discovery:
    match settings.discovery:
        case "udp":
            return UDPDiscovery(
                settings.node_id,
                port,
                connect,
                membership,
                port=settings.discovery_port,
                incarnation=incarnation,
            )
        case "manual":
            assert settings.discovery_config is not None  # checked by the settings
            return ManualDiscovery(settings.node_id, settings.discovery_config, connect)
        case "dns":
            return DnsDiscovery(
                settings.node_id, settings.discovery_name, connect, port=settings.grpc_port
            )
        case "none":
            return NoDiscovery(settings.node_id, connect)
