"""The onnx engine: one ONNX graph per shard, run by ONNX Runtime. Knows checkpoints and shards, no
sockets.
"""

import os

# From 1.32 on the library tells its maker about each session, over the network, unless this is set
# before it is imported. Nothing of a node leaves it unasked.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
