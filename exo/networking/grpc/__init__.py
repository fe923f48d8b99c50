"""The gRPC transport between nodes: wire format, server, peer handle, and the health service for
the kubelet.
"""
