"""`PassWatchdog`: whether the work of a stage goes on, or hangs. Pure: no clock and no engine; time
is passed in.

A pass may take as long as passes do on this machine. How long earlier ones took, per row and in
all, decides how long one may go without a sign of progress. Silence is counted in ticks of the
node's own loop, so that a stopped process or a blocked loop is never taken for a stuck engine. A
stage that was stuck counts as working again only after a quiet while: each change means a new plan,
and plans are expensive to change.
"""

from __future__ import annotations

from typing import Final

# Allowed over what passes usually take: a busy machine, a swapped-out page or a cold cache makes no
# stage stuck.
TIMES_USUAL: Final = 10.0
# Before the first pass nothing is known, and weights may still have to come from a slow disk: this
# many times the patience.
TIMES_FIRST: Final = 10.0
# What counts as usual shrinks by this with each pass, so that one slow pass is forgotten in time.
FADE: Final = 0.95
# Seconds. A tick that comes later than this was delayed by our own loop, and counts as this long.
LONGEST_TICK: Final = 2.0


class PassWatchdog:
    """patience: seconds without a sign of progress, on top of what passes usually take, after which
    the stage is stuck.
    """

    def __init__(self, patience: float = 30.0) -> None:
        self._patience = patience
        self._rows = 0  # of the pass that runs
        self._longest = 0.0
        self._per_row = 0.0
        self._silence = self._quiet = 0.0
        self._told_ms = 0
        self._mark: int | None = None
        self._ticked: float | None = None
        # "" while work goes on. It does not change while it lasts: peers are told once.
        self.reason = ""

    @property
    def is_stuck(self) -> bool:
        return bool(self.reason)

    @property
    def usual(self) -> float:
        """Seconds that the longest of the recent passes took; 0.0 before the first."""
        return self._longest

    @property
    def usual_ms(self) -> int:
        """`usual` for the offer: a power of two, at most four times too high, so that it changes
        rarely.
        """
        level = 1 << max(4, (int(1000 * self._longest) - 1).bit_length()) if self._longest else 0
        if level > self._told_ms or 4 * level < self._told_ms:
            self._told_ms = level
        return self._told_ms

    @property
    def allowed(self) -> float:
        """Seconds that the pass that runs may go without a sign of progress."""
        if not self._longest:
            return TIMES_FIRST * self._patience
        return self._patience + TIMES_USUAL * max(self._longest, self._per_row * self._rows)

    def forget(self) -> None:
        """The stage starts again. What passes take on this machine stays known."""
        self._rows, self._silence, self._quiet, self.reason = 0, 0.0, 0.0, ""

    def begin(self, rows: int) -> None:
        self._rows = rows

    def end(self, seconds: float) -> None:
        """The pass that was begun is over."""
        self._longest = max(seconds, FADE * self._longest)
        self._per_row = max(seconds / max(1, self._rows), FADE * self._per_row)
        self._rows = 0

    def tick(self, now: float, *, busy: bool, mark: int) -> None:
        """busy: a pass runs, or chunks wait for one. mark: changes whenever work gets ahead."""
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
            else "no pass has ended before"
        )
        return f"a forward pass has made no progress for {self.allowed:.3g} s ({usual})"
