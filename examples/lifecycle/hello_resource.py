"""The smallest useful resource: a listening socket with one way up and one way down.

Run: python examples/lifecycle/hello_resource.py
"""

import asyncio

from exo.lifecycle import AsyncResource, ResourceClosed


class Greeter(AsyncResource):
    """Says hello to each client."""

    RESOURCE_TYPE = "greeter"

    def __init__(self) -> None:
        super().__init__(resource_id="greeter-1", initialize_timeout=5, cleanup_timeout=5)
        self._server: asyncio.Server | None = None

    async def _do_initialize(self) -> None:
        self._server = await asyncio.start_server(self._greet, "127.0.0.1", 0)

    async def _do_cleanup(self) -> None:
        server, self._server = self._server, None
        # After a start that failed half-way there is none.
        if server is not None:
            server.close()
            await server.wait_closed()

    async def _do_health_check(self) -> bool:
        return self._server is not None and self._server.is_serving()

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello\n")
        writer.close()
        await writer.wait_closed()

    async def address(self) -> tuple[str, int]:
        """A public operation: `ensure_ready` first."""
        await self.ensure_ready()
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return host, port


async def main() -> None:
    greeter = Greeter()
    greeter.add_listener(
        lambda change: print(f"{change.old.name} -> {change.new.name} ({change.reason})")
    )

    # This also starts it: there is no need to call initialize() first.
    host, port = await greeter.address()
    reader, writer = await asyncio.open_connection(host, port)
    print("it says:", (await reader.read()).decode().strip())
    writer.close()
    await writer.wait_closed()
    print("healthy:", await greeter.check_health())

    await greeter.cleanup()
    try:
        await greeter.address()
    except ResourceClosed as refused:
        print("after cleanup:", refused)


if __name__ == "__main__":
    asyncio.run(main())
