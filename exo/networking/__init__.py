"""How nodes find and reach each other: discovery, peer handles, server, and the messages between
them.

The seams are `discovery.py`, `peer_handle.py`, `server.py` and `messages.py`. The folders `grpc/`,
`udp/`, `manual/` and `dns/` implement them. All of it carries sequences, plans and epochs without
knowing what they mean: that is for `exo.pipeline` and `exo.ring`.
"""
