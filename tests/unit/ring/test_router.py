"""A message reaches the part of this node that it is for, or the peer; and the router is bound
once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from exo.inference.sampling.params import SamplingParams
from exo.networking.errors import WrongEpoch
from exo.networking.messages import Close, Failed, Message, Open, Token
from exo.ring.membership_view import MembershipView
from exo.ring.router import Receivers, Router
from exo.topology import NodeOffer

OWN = "me.1/1/1"  # a sequence that came in at this node


@dataclass
class Recorder:
    """Any method may be called; `calls` says which were."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    epochs: dict[str, Any] = field(default_factory=dict)
    raises: Exception | None = None

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> None:
            if self.raises is not None:
                raise self.raises
            self.calls.append((name, *arguments, *named.values()))

        return call


class Bench:
    def __init__(self) -> None:
        self.stage, self.frontend = Recorder(), Recorder()
        self.outboxes, self.peers = Recorder(), Recorder()
        self.router = Router(MembershipView(NodeOffer(node_id="me", incarnation=1)))
        self.router.bind(self.receivers())

    def receivers(self) -> Receivers:
        parts: Any = self
        return Receivers(
            stage=parts.stage, frontend=parts.frontend, outboxes=parts.outboxes, peers=parts.peers
        )


def opened(entry: str, sequence_id: str) -> Open:
    return Open(
        sequence_id=sequence_id,
        epoch="e",
        entry=entry,
        tokens=(1,),
        prompt_length=1,
        params=SamplingParams(),
    )


def close(sequence_id: str = OWN) -> Close:
    return Close(sequence_id=sequence_id, epoch="e")


def failed(**fields: Any) -> Failed:
    return Failed(
        **{
            "sequence_id": OWN,
            "epoch": "e",
            "node": "b",
            "reason": "r",
            "retryable": True,
            **fields,
        }
    )


def test_it_is_bound_once_and_says_so_where_it_is_not() -> None:
    bench = Bench()
    with pytest.raises(RuntimeError, match="router of node 'me' is bound already"):
        bench.router.bind(bench.receivers())
    unbound = Router(MembershipView(NodeOffer(node_id="n", incarnation=1)))
    with pytest.raises(RuntimeError, match="router of node 'n' is not bound yet"):
        unbound.send("n", close())
    with pytest.raises(RuntimeError, match="router of node 'n' is not bound yet"):
        unbound.on_offer(NodeOffer(node_id="b", incarnation=1))


def test_an_unbound_router_can_say_hello() -> None:
    """The server is up before the first peer is heard of; its hello needs no receivers."""
    offer = NodeOffer(node_id="n", incarnation=7)
    assert Router(MembershipView(offer)).own_offer() == offer


def test_what_is_for_a_peer_goes_to_its_outbox() -> None:
    bench = Bench()
    bench.router.send("b", close())
    assert bench.outboxes.calls == [("send", "b", close())]
    assert bench.stage.calls == []


def test_what_is_for_this_node_arrives_at_once() -> None:
    bench = Bench()
    bench.router.send("me", close())
    assert bench.stage.calls == [("close", "me", OWN)]
    assert bench.outboxes.calls == []


def test_a_token_goes_to_the_frontend_first_and_then_to_the_first_stage() -> None:
    bench = Bench()
    token = Token(sequence_id=OWN, epoch="e", position=1, token=2)
    order: list[str] = []
    bench.frontend.token = lambda *_: order.append("frontend")  # type: ignore[attr-defined]
    bench.stage.token = lambda *_: order.append("stage")  # type: ignore[attr-defined]
    bench.router.deliver("b", token)
    assert order == ["frontend", "stage"]


def test_an_own_message_of_an_epoch_that_is_not_served_fails_its_sequence_here() -> None:
    bench = Bench()
    bench.stage.raises = WrongEpoch("e9")
    message = opened("me", OWN)

    def fail(*arguments: Any, **named: Any) -> None:
        bench.stage.calls.append(("fail", *arguments, *named.values()))

    bench.stage.fail = fail  # type: ignore[attr-defined]
    bench.router.send("me", message)
    reason = "this node serves epoch 'e9'"
    assert bench.stage.calls == [("fail", OWN, reason, True)]
    assert bench.frontend.calls == [("failed", "me", failed(node="me", reason=reason))]


@pytest.mark.parametrize("retryable", [True, False])
def test_what_could_not_be_delivered_fails_its_sequence_at_stage_and_frontend(
    retryable: bool,
) -> None:
    bench = Bench()
    token = Token(sequence_id=OWN, epoch="e", position=1, token=2)
    bench.router.undelivered("b", token, "gone", retryable=retryable)
    assert bench.stage.calls == [("fail", OWN, "gone", retryable)]
    told = failed(node="me", reason="gone", retryable=retryable)
    assert bench.frontend.calls == [("failed", "me", told)]


@pytest.mark.parametrize("message", [close(), failed()])
def test_a_lost_close_or_failure_is_no_news(message: Message) -> None:
    bench = Bench()
    bench.router.undelivered("b", message, "gone")
    assert bench.stage.calls == bench.frontend.calls == []


def test_a_sequence_is_opened_only_under_the_name_of_its_entry() -> None:
    bench = Bench()
    bench.router.deliver("b", opened("me", "other.1/1/1"))
    assert bench.stage.calls == []
    bench.router.deliver("b", opened("me", OWN))
    assert bench.stage.calls == [("open", "b", opened("me", OWN))]


def test_a_close_of_the_entry_and_one_of_a_stage_mean_different_things() -> None:
    bench = Bench()
    bench.router.deliver("me", close())
    bench.router.deliver("b", close())
    assert bench.stage.calls == [("close", "me", OWN), ("close_behind", "b", OWN)]


def test_only_a_stage_of_the_epoch_can_fail_a_sequence_here() -> None:
    bench = Bench()
    bench.stage.epochs["e"] = SimpleNamespace(nodes=("me", "b"))
    for sender in ("stranger", "b"):
        bench.router.deliver(sender, failed())
    assert bench.stage.calls == [("fail", OWN, "b: r", True)]
    # The frontend checks the sender itself.
    assert [call[1] for call in bench.frontend.calls] == ["stranger", "b"]


def test_news_of_peers_is_passed_on() -> None:
    bench = Bench()
    offer = NodeOffer(node_id="b", incarnation=1)
    bench.router.on_offer(offer)
    bench.router.on_peer_lost("b", "gone")
    assert bench.peers.calls == [("on_offer", offer), ("on_peer_lost", "b", "gone")]
