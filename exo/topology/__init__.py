"""Device capabilities, membership views, partitioning and ring plans. Pure: no I/O, no numpy, no grpc."""
