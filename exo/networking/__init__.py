"""Nodes finding and reaching each other: discovery, peer handles, server, and what travels between
them.

The seams are `discovery.py`, `peer_handle.py`, `server.py` and `messages.py`; `grpc/`, `udp/`,
`manual/` and `dns/`
implement them. Knows nothing of sequences, plans and epochs beyond carrying them: that is
`exo.orchestration`.
"""
