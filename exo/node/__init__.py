"""One node put together: model, engine, server, discovery, ring. Knows no HTTP.

The command line calls `exo.node.build.build_node(settings)`, which makes a `Node`. A node is an
`AsyncResource` and a `NodeView` (`exo.api.backend`). `node.backend` is the `Backend` and
`node.monitor` the `HealthMonitor`. `await node.drain()` stops admission and waits for the requests
that run; `await node.cleanup()` drains, then closes all parts in order.
"""
