"""Making the ONNX graph of a shard: its nodes, weight formats and files. Runs nothing."""
