"""The node's HTTP side: OpenAI-compatible API, health endpoints, metrics, dashboard and chat pages.

It works with the protocols of `exo.api.backend` and knows nothing of the ring, engines or gRPC.
"""
