"""ExoCluster: from its spec to ExoNodes, services and status. Pure."""
