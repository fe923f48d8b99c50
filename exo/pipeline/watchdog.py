"""`PassWatchdog`: whether the work that a stage has in hand goes on, or hangs. Pure: no clock, no
engine, time is handed in.

A pass may take what it takes: what it took before, by rows and in all, sets how long one may go
without a sign of progress. Silence is counted in ticks of the node's own loop, so that a stopped
process or a stalled loop is never
taken for a stuck engine. What was stuck counts as well again only after some quiet: a plan is dear
to change.
"""

from __future__ import annotations

from typing import Final

# Over what passes take, so that a busy machine, a swapped-out page or a cold cache makes nobody
# stuck.
TIMES_USUAL: Final = 10.0
# Before the first pass nothing is known, and weights may still be on a slow disk: this many times
# the patience.
TIMES_FIRST: Final = 10.0
# What counts as usual falls by this with each pass: one slow pass is not remembered for ever.
FADE: Final = 0.95
# A tick that comes later than this (seconds) is our own stall, and counts as no more.
LONGEST_TICK: Final = 2.0


class PassWatchdog:
    """patience: seconds without a sign of progress, on top of what passes usually take, after which
    it is stuck.
    """

    def __init__(self, patience: float = 30.0) -> None:
        self._patience = patience
        self._rows = 0  # of the pass in hand
        self._longest = 0.0
        self._per_row = 0.0
        self._silence = self._quiet = 0.0
        self._told_ms = 0
        self._mark: int | None = None
        self._ticked: float | None = None
        # "" while work goes on. The same for as long as it lasts: peers are told it once.
        self.reason = ""

    @property
    def is_stuck(self) -> bool:
        return bool(self.reason)

    @property
    def usual(self) -> float:
        """Seconds of the longest passes of late; 0.0 before the first."""
        return self._longest

    @property
    def usual_ms(self) -> int:
        """The same for others to know: a power of two, and at most four times too high, so that it
        changes rarely.
        """
        level = 1 << max(4, (int(1000 * self._longest) - 1).bit_length()) if self._longest else 0
        if level > self._told_ms or 4 * level < self._told_ms:
            self._told_ms = level
        return self._told_ms

    @property
    def allowed(self) -> float:
        """Seconds that the pass in hand may go without a sign of progress."""
        if not self._longest:
            return TIMES_FIRST * self._patience
        return self._patience + TIMES_USUAL * max(self._longest, self._per_row * self._rows)

    def forget(self) -> None:
        """Another life of the stage begins. What passes take is still so."""
        self._rows, self._silence, self._quiet, self.reason = 0, 0.0, 0.0, ""

    def begin(self, rows: int) -> None:
        self._rows = rows

    def end(self, seconds: float) -> None:
        """The pass that was begun is over."""
        self._longest = max(seconds, FADE * self._longest)
        self._per_row = max(seconds / max(1, self._rows), FADE * self._per_row)
        self._rows = 0

    def tick(self, now: float, *, busy: bool, mark: int) -> None:
        """busy: there is work in hand or queued. mark: differs whenever anything of it was done."""
        passed = 0.0 if self._ticked is None else max(0.0, min(now - self._ticked, LONGEST_TICK))
        self._ticked = now
        moves = not busy or mark != self._mark
        self._mark = mark
        self._silence = 0.0 if moves else self._silence + passed
        self._quiet = self._quiet + passed if moves else 0.0
        if self._silence > self.allowed:
            self.reason = self.reason or self._why()
        elif self._quiet > self._patience / 2:
            self.reason = ""

    def _why(self) -> str:
        usual = (
            f"passes took up to {self.usual:.2g} s before"
            if self.usual
            else "no pass was over before"
        )
        return f"a forward pass has made no progress for {self.allowed:.3g} s ({usual})"
