"""Resources that need each other: started in order, rolled back when one fails, closed in reverse.

Run: python examples/lifecycle/group.py
"""

import asyncio

from exo.lifecycle import AsyncResource, ResourceGroup, ResourceInitializationError


class Part(AsyncResource):
    RESOURCE_TYPE = "part"

    def __init__(self, name: str, fails: bool = False) -> None:
        super().__init__(resource_id=name)
        self.fails = fails

    async def _do_initialize(self) -> None:
        if self.fails:
            raise OSError("port 50051 is taken")
        print("  up  ", self.resource_id)

    async def _do_cleanup(self) -> None:
        if not self.fails:
            print("  down", self.resource_id)


def compose(server: Part) -> ResourceGroup:
    group = ResourceGroup(resource_id="node")
    group.add(Part("engine"))
    group.add(Part("downloader"))
    group.add(server, depends_on=["engine"])
    group.add(Part("discovery"), depends_on=["server"])
    return group


async def main() -> None:
    print("a start and a stop:")
    async with compose(Part("server")) as group:
        print("  healthy:", await group.check_health())

    print("a start that fails half-way:")
    broken = compose(Part("server", fails=True))
    try:
        await broken.initialize()
    except ResourceInitializationError as failed:
        # The cause is an ExceptionGroup of the members' errors, each with its own cause.
        for error in getattr(failed.__cause__, "exceptions", ()):
            print("  failed:", error.__cause__)
    print("  states:", ", ".join(f"{part.resource_id} {part.state.name}" for part in broken))
    await broken.cleanup()

    print("a mistake:")
    try:
        broken.add(Part("a"), depends_on=["b"])
        broken.add(Part("b"), depends_on=["a"])
    except ValueError as mistake:
        print(" ", mistake)


if __name__ == "__main__":
    asyncio.run(main())
