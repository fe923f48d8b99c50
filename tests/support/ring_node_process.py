"""A node of the network tests as a process of its own: real server, real discovery from a peers
file, no ring.

Prints one JSON object a line: `listening`, then `peers` whenever the connected peers change, `lost`
for each loss. `python ring_node_process.py NODE_ID HOST PORT PEERS_FILE`
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time

from exo.networking.grpc.grpc_peer_handle import GRPCPeerHandle
from exo.networking.grpc.grpc_server import GRPCServer
from exo.networking.hello import Hello, HelloReply, Membership
from exo.networking.manual.manual_discovery import ManualDiscovery
from exo.networking.messages import Message
from exo.topology.offer import NodeOffer

MEMBERSHIP = Membership(cluster="test")


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, "at": time.time(), **fields}), flush=True)


class Handler:
    def __init__(self, node_id: str) -> None:
        self.offer = NodeOffer(node_id=node_id, incarnation=time.time_ns(), model_id="m")

    def own_offer(self) -> NodeOffer:
        return self.offer

    def on_hello(self, hello: Hello) -> HelloReply:
        return HelloReply(offer=self.offer)

    def on_offer(self, offer: NodeOffer) -> None:
        pass

    async def on_message(self, peer_id: str, message: Message) -> None:
        say("message", sequence=message.sequence_id)

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        say("lost", peer=peer_id, reason=reason)


async def main(node_id: str, host: str, port: int, peers_file: str) -> None:
    handler = Handler(node_id)

    def connect(peer_id: str | None, address: str, port: int) -> GRPCPeerHandle:
        return GRPCPeerHandle(peer_id, address, port, handler=handler, membership=MEMBERSHIP)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    discovery = ManualDiscovery(node_id, peers_file, connect, poll_interval=0.1)
    discovery.on_change(lambda peers: say("peers", ids=[peer.id() for peer in peers]))
    async with GRPCServer(node_id, host, port, handler, MEMBERSHIP) as server:
        say("listening", port=server.port)
        async with discovery:
            slow: dict[str, bool] = {}
            while not stop.is_set():
                now = {peer.id(): peer.is_slow() for peer in discovery.peers()}
                if now != slow:
                    slow = now
                    say("slow", peers=[peer for peer, is_slow in now.items() if is_slow])
                try:
                    async with asyncio.timeout(0.1):
                        await stop.wait()
                except TimeoutError:
                    pass


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]))
