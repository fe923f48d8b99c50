"""The onnx engine: one ONNX graph per shard, run by ONNX Runtime. Knows checkpoints and shards, no
sockets.
"""

import os

# From 1.32 on the library reports each session to its maker over the network, unless this is set
# before it is imported. A node sends nothing that its user has not asked for.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
