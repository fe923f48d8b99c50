"""The onnx engine: one ONNX graph per shard, run by ONNX Runtime. Knows checkpoints and shards, no sockets."""
