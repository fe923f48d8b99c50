"""ExoNode: from its spec and a snapshot to actions and its status. Pure, except `node_client`."""
