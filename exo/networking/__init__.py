"""Discovery, servers, peer handles and links between nodes. Knows no HTTP API and no engine."""
