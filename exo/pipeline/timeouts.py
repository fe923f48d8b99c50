"""How long an attempt may go without a token before its entry gives it up, because a message was
lost and no node noticed. Pure.

A stage whose own passes hang says so itself (see `PassWatchdog`), long before this. How long passes
take, and whether sequences wait for memory, stages tell in their offers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from exo.topology import NodeOffer, RingPlan

# Rounds through the ring that one token may take: passes of other sequences' prompts come in
# between, and stages take turns.
ROUNDS_PER_TOKEN: Final = 20
# Tokens of a prompt that a round reads at least.
LEAST_CHUNK: Final = 32


@dataclass(frozen=True, slots=True)
class Pace:
    """round_seconds: the sum of a pass on each stage; None if a stage has not told its own.

    queued: sequences wait for memory.
    """

    round_seconds: float | None = None
    queued: bool = False

    @classmethod
    def of(cls, plan: RingPlan, offers: Mapping[str, NodeOffer]) -> Pace:
        stages = [offers[stage.node_id] for stage in plan.stages if stage.node_id in offers]
        known = len(stages) == len(plan.stages) and all(offer.pass_ms for offer in stages)
        return cls(
            sum(offer.pass_ms for offer in stages) / 1000 if known else None,
            any(offer.queued for offer in stages),
        )


def allowed(pace: Pace, *, fresh: bool, tokens: int, stall: float, first_stall: float) -> float:
    """Seconds. fresh: the attempt has no token yet; `tokens` have to be read first.

    first_stall is the most that is ever allowed. It also holds before the first token while the
    pace is unknown.
    """
    if pace.round_seconds is None:
        return first_stall if fresh else stall
    rounds = -(-tokens // LEAST_CHUNK) if fresh else 1
    return min(max(stall, first_stall), stall + ROUNDS_PER_TOKEN * pace.round_seconds * rounds)
