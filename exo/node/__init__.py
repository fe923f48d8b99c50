"""The node: one request's state, who runs next, plan and epoch, replay. Knows no HTTP.

The composition root calls `exo.node.build.build_node(settings: NodeSettings) -> Node`. A `Node` is
an `AsyncResource`, a `Backend` and a `NodeView` (`exo.api.backend`); `node.monitor` is its
`HealthMonitor`, `await node.drain()` stops admission and waits for running requests,
`node.cleanup()` drains, then closes all in order.
"""
