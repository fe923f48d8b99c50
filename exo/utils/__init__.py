"""What all components share on top of the lifecycle: health monitoring and error handling."""
