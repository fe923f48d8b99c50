"""Running the graph of a shard: sessions, KV buffers, sequences and their slots."""
