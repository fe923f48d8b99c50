"""ExoCluster: from its spec and a snapshot to actions and its status. Pure."""
