"""The gRPC transport between nodes: wire format, server, peer handle, and the health service for the kubelet.

Sockets are read by the thread that waits for messages. gRPC's newer default ("event engine") reads them in a thread of
its own: two more wake-ups per message, which is more than all else that a hop costs.
"""

import os

# Read once, when gRPC starts; there is no channel option for it. Whoever has set it knows better.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
