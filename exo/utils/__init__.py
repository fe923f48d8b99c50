"""What all components share on top of the lifecycle: health monitoring, error handling, sockets."""
