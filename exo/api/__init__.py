"""The node's HTTP face: OpenAI-compatible API, health endpoints, metrics, dashboard and chat pages.

Works against `exo.inference.generation.Backend` and `NodeView`; knows nothing of the ring, engines
or gRPC.
"""
