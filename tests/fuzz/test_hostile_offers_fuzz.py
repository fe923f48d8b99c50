"""A member of the ring that says of itself whatever it likes, every few milliseconds: the others
serve on.

It offers no memory, so it holds no layers; who does hold some can always break what runs through
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from loopback import LoopbackDiscovery, Net, answer, ask, formed, leftovers, make_node, until

from exo.networking.hello import Hello, HelloReply
from exo.networking.messages import Message
from exo.topology import NodeOffer, NodeState

GOOD = ("good-1", "good-2")


class Evil:
    """In place of a `Ring`: an offer of its own fancy each time it is asked."""

    def __init__(self, rng: random.Random, net: Net) -> None:
        self._rng, self._net = rng, net

    def own_offer(self) -> NodeOffer:
        choose = self._rng.choice
        epochs = [self._net.routers[name].own_offer().epoch for name in GOOD]
        return NodeOffer(
            node_id="evil",
            incarnation=choose((0, 1, 2, 2**63 - 1, self._rng.randrange(2**40))),
            address=choose(("", "203.0.113.9", "x" * 400)),
            state=choose(list(NodeState)),
            model_id=choose(("", "dummy", "dummy", "other")),
            epoch=choose(("", "0" * 16, *epochs)),
            peers=choose((GOOD, GOOD, GOOD[:1], (), ("evil",), tuple(f"n{i}" for i in range(200)))),
            slow=choose(((), GOOD, ("evil",))),
            stuck=choose(("", "good-1", "x" * 512)),
            pass_ms=choose((0, 1, 2**63 - 1)),
            queued=choose((False, True)),
        )

    def on_hello(self, hello: Hello) -> HelloReply:
        return HelloReply(offer=self.own_offer())

    def on_offer(self, offer: NodeOffer) -> None:
        pass

    def on_peer_lost(self, peer_id: str, reason: str) -> None:
        pass

    async def on_message(self, peer_id: str, message: Message) -> None:
        raise AssertionError(f"{peer_id} sent {message} to a node without layers")


@pytest.mark.parametrize("seed", range(3))
async def test_the_streams_of_the_others_run_on_and_no_epoch_is_left_behind(seed: int) -> None:
    rng, net = random.Random(seed), Net()
    nodes = [make_node(net, name, step_seconds=0.001) for name in GOOD]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        await formed(nodes, 2)
        expected = await answer(nodes[0], ask(max_tokens=60))
        net.routers["evil"] = Evil(rng, net)  # type: ignore[assignment]
        async with LoopbackDiscovery("evil", net) as there:
            clients = [
                asyncio.create_task(answer(nodes[i % 2], ask(max_tokens=60))) for i in range(8)
            ]
            for _ in range(150):
                for node in nodes:
                    node.router.on_offer(net.routers["evil"].own_offer())
                await asyncio.sleep(0.01)
            async with asyncio.timeout(10):
                assert await asyncio.gather(*clients) == [expected] * 8
                assert await answer(nodes[1], ask(max_tokens=60)) == expected
            assert all(len(node.stage.epochs) < 100 for node in nodes)
            await there.cleanup()
        await formed(nodes, 2)
        await until(lambda: all(len(node.stage.epochs) == 1 for node in nodes))
        await until(lambda: not any(leftovers(node) for node in nodes))
