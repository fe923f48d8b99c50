"""Channel and server options of the ring, with the reason for each."""

from __future__ import annotations

from exo.networking.grpc.wire.checks import MAX_MESSAGE_BYTES

SERVICE = "exo.v1.Node"

_LIMITS: list[tuple[str, int]] = [
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 * 1024),
    # A stream's window: a few activations may be on their way, then the sender waits.
    ("grpc.http2.lookahead_bytes", 4 * 1024 * 1024),
    # Fewer, larger frames: a 4 MB activation is 4 of them, not 256.
    ("grpc.http2.max_frame_size", 1024 * 1024),
    # For dead connections without heartbeats (the accepting side after a network cut).
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
]

SERVER_OPTIONS: list[tuple[str, int]] = [
    *_LIMITS,
    # With SO_REUSEPORT two nodes could share a port, and each would get half of the peers.
    ("grpc.so_reuseport", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]

CLIENT_OPTIONS: list[tuple[str, int]] = [
    *_LIMITS,
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    # Each handle has a connection of its own, without the state of an earlier, broken one.
    ("grpc.use_local_subchannel_pool", 1),
]
