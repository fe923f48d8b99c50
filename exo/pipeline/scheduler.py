"""`Scheduler`: which sequences run in the next forward pass of one stage. Pure: no clock, no
awaits, no tensors.

Theory of operation. Each sequence is a lane with a queue of pieces (a slice of the prompt, or one
token). A pass takes either one-token pieces of many lanes (decode: one batched matmul) or some
chunks of longer ones (prefill); where both wait, the kinds alternate, so that a decode step waits
for at most one chunk. Lanes are served least recently first: nobody starves. A lane is admitted
while the tokens it may grow to fit the KV budget; the others wait, fair between entry nodes (round
robin), first come first served within one.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field, replace
from typing import Any

from exo.inference.errors import Overloaded


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """capacity_tokens: KV budget; max_lanes: sequences that fit in it at once.
    chunk_tokens: longest prefill of one lane in a pass; pass_tokens: of all lanes.
    micro_batch: below this many decoding lanes a pass takes all of them; above, `stages` passes
    share them, so that every stage of a longer ring has work (a smaller batch costs about as much
    as a larger one: weights are read once).
    max_waiting: lanes that wait for memory; max_per_owner: lanes of one entry, so that none takes
        all the places.
    """

    capacity_tokens: int = 1 << 20
    max_batch: int = 64
    chunk_tokens: int = 256
    pass_tokens: int = 512
    micro_batch: int = 8
    max_waiting: int = 1024
    max_per_owner: int = 512
    max_lanes: int = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """`values` (token ids or hidden rows; whatever has a length and slices) go in from `position`
    on.
    """

    position: int
    values: Any
    sample: bool


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One lane's share of a pass."""

    lane_id: str
    piece: Piece


@dataclass(slots=True, eq=False)
class _Lane:
    lane_id: str
    owner: str
    group: str
    reserve: int
    pieces: deque[Piece] = field(default_factory=deque)


def opening_pieces(tokens: tuple[int, ...], prompt_length: int, *, by_step: bool) -> list[Piece]:
    """What a sequence begins with: all of it as a prompt or, where `by_step`, what it has produced
    as it was then.
    """
    prompt = max(1, prompt_length) if by_step else len(tokens)
    pieces = [tokens[:prompt], *((token,) for token in tokens[prompt:])]
    starts = [0, *range(prompt, len(tokens))]
    return [
        Piece(start, values, sample=start + len(values) == len(tokens))
        for start, values in zip(starts, pieces, strict=True)
    ]


class Scheduler:
    """`group`: lanes of different groups (ring epochs) never share a pass."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.reserved = 0
        self._lanes: dict[str, _Lane] = {}
        self._owned: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[_Lane]] = OrderedDict()
        self._running: set[str] = set()
        # Lanes that have a piece and are admitted, least recently served first.
        self._decoding: OrderedDict[str, _Lane] = OrderedDict()
        self._prefilling: OrderedDict[str, _Lane] = OrderedDict()
        self._decoded_last = False
        self._admitted: list[str] = []

    def __contains__(self, lane_id: str) -> bool:
        return lane_id in self._lanes

    def __len__(self) -> int:
        return len(self._lanes)

    def resize(self, capacity_tokens: int, max_lanes: int) -> None:
        """The engine holds other layers now: its room is another."""
        self.limits = replace(
            self.limits, capacity_tokens=max(1, capacity_tokens), max_lanes=max(1, max_lanes)
        )
        for lane in (lane for lanes in self._waiting.values() for lane in lanes):
            # Else it would wait for ever, first in line.
            lane.reserve = min(lane.reserve, self.limits.capacity_tokens)
        self._admit_waiting()

    @property
    def waiting(self) -> int:
        return sum(len(lanes) for lanes in self._waiting.values())

    @property
    def has_work(self) -> bool:
        return bool(self._decoding or self._prefilling)

    @property
    def is_partial(self) -> bool:
        """Whether the next pass would decode only some of the sequences that run."""
        return not self._prefilling and 0 < len(self._decoding) < min(
            len(self._running), self.limits.max_batch
        )

    def is_running(self, lane_id: str) -> bool:
        return lane_id in self._running

    def open(
        self, lane_id: str, *, owner: str, group: str, reserve: int, wait: bool = True
    ) -> None:
        """A new lane. `wait` False admits it at once (the first stage has admitted it already).

        Raises `Overloaded` when too many wait, `ValueError` for a lane that is there already.
        """
        if lane_id in self._lanes:
            raise ValueError(f"lane {lane_id!r} is open already")
        if self._owned[owner] >= self.limits.max_per_owner:
            raise Overloaded(f"{self._owned[owner]} sequences of {owner!r} are here already")
        # A lane larger than the whole budget runs alone; the engine says what does not fit.
        lane = _Lane(lane_id, owner, group, min(max(reserve, 1), self.limits.capacity_tokens))
        if not wait or (not self._waiting and self._fits(lane)):
            self._enter(lane)
            self._admit(lane)
            return
        if self.waiting >= self.limits.max_waiting:
            raise Overloaded(f"{self.waiting} sequences wait for memory already")
        self._enter(lane)
        self._waiting.setdefault(owner, deque()).append(lane)

    def push(self, lane_id: str, piece: Piece) -> None:
        """Raises `KeyError` for an unknown lane."""
        lane = self._lanes[lane_id]
        lane.pieces.append(piece)
        if lane_id in self._running and len(lane.pieces) == 1:
            self._ready(lane)

    def close(self, lane_id: str) -> bool:
        """Forget a lane and admit those that wait; False for one that is not here."""
        lane = self._lanes.pop(lane_id, None)
        if lane is None:
            return False
        self._owned[lane.owner] -= 1
        if not self._owned[lane.owner]:
            del self._owned[lane.owner]
        self._decoding.pop(lane_id, None)
        self._prefilling.pop(lane_id, None)
        if lane_id in self._running:
            self._running.discard(lane_id)
            self.reserved -= lane.reserve
        else:
            self._forget_waiting(lane)
        self._admit_waiting()
        return True

    def take_admitted(self) -> list[str]:
        """The lanes admitted since this was last asked, those that are closed again left out."""
        admitted, self._admitted = self._admitted, []
        return [lane_id for lane_id in admitted if lane_id in self._running]

    def skip(self, lane_id: str, tokens: int) -> None:
        """The first `tokens` of a lane that has not run yet need no pass: the engine knows them
        already.
        """
        lane = self._lanes[lane_id]
        first = lane.pieces[0]
        lane.pieces[0] = Piece(first.position + tokens, first.values[tokens:], first.sample)
        self._decoding.pop(lane_id, None)
        self._prefilling.pop(lane_id, None)
        self._ready(lane)

    def next_batch(self, stages: int = 1) -> list[Work]:
        """What the next pass runs; [] when nothing is ready. `stages`: of the ring, for
        micro-batches.
        """
        if not self.has_work:
            return []
        decode = bool(self._decoding) and not (self._prefilling and self._decoded_last)
        self._decoded_last = decode
        return self._decode_batch(stages) if decode else self._prefill_batch()

    def _decode_batch(self, stages: int) -> list[Work]:
        group = next(iter(self._decoding.values())).group
        lanes = [lane for lane in self._decoding.values() if lane.group == group]
        for lane in (chosen := lanes[: self._batch_size(len(self._running), stages)]):
            del self._decoding[lane.lane_id]
        return [self._take(lane, 1) for lane in chosen]

    def _batch_size(self, live: int, stages: int) -> int:
        if stages <= 1 or live < 2 * self.limits.micro_batch:
            return self.limits.max_batch
        return min(self.limits.max_batch, max(self.limits.micro_batch, -(-live // stages)))

    def _prefill_batch(self) -> list[Work]:
        group = next(iter(self._prefilling.values())).group
        left = self.limits.pass_tokens
        batch: list[Work] = []
        for lane in [lane for lane in self._prefilling.values() if lane.group == group]:
            if left <= 0 or len(batch) >= self.limits.max_batch:
                break
            del self._prefilling[lane.lane_id]
            work = self._take(lane, min(left, self.limits.chunk_tokens))
            left -= len(work.piece.values)
            batch.append(work)
        return batch

    def _take(self, lane: _Lane, tokens: int) -> Work:
        """A rest of one token goes along: alone it would be a step of decoding, which engines may
        round otherwise.
        """
        piece = lane.pieces.popleft()
        tokens = max(tokens, 2) if len(piece.values) > 1 else tokens
        if len(piece.values) > tokens + 1:
            lane.pieces.appendleft(
                Piece(piece.position + tokens, piece.values[tokens:], piece.sample)
            )
            piece = Piece(piece.position, piece.values[:tokens], False)
        if lane.pieces:
            self._ready(lane)
        return Work(lane.lane_id, piece)

    def _ready(self, lane: _Lane) -> None:
        kind = self._decoding if len(lane.pieces[0].values) == 1 else self._prefilling
        kind[lane.lane_id] = lane

    def _enter(self, lane: _Lane) -> None:
        self._lanes[lane.lane_id] = lane
        self._owned[lane.owner] += 1

    def _fits(self, lane: _Lane) -> bool:
        return (
            self.reserved + lane.reserve <= self.limits.capacity_tokens
            and len(self._running) < self.limits.max_lanes
        )

    def _admit(self, lane: _Lane) -> None:
        self._running.add(lane.lane_id)
        self._admitted.append(lane.lane_id)
        self.reserved += lane.reserve
        if lane.pieces:
            self._ready(lane)

    def _admit_waiting(self) -> None:
        while self._waiting:
            owner, lanes = next(iter(self._waiting.items()))
            if not self._fits(lanes[0]):
                return  # nobody overtakes: a large one would starve
            del self._waiting[owner]
            lane = lanes.popleft()
            if lanes:
                self._waiting[owner] = lanes  # to the end: the other owners come first
            self._admit(lane)

    def _forget_waiting(self, lane: _Lane) -> None:
        lanes = self._waiting[lane.owner]
        lanes.remove(lane)
        if not lanes:
            del self._waiting[lane.owner]
