"""ExoNode: from its spec to the pod, services and status. Pure, except `node_client`."""
