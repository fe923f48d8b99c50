"""When work counts as stuck: tables of what a stage's loop would report, second by second."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exo.pipeline.watchdog import LONGEST_TICK, PassWatchdog


def used(*passes: tuple[int, float], patience: float = 30.0) -> PassWatchdog:
    """A watch that has seen these passes: rows, seconds."""
    watch = PassWatchdog(patience)
    for rows, seconds in passes:
        watch.begin(rows)
        watch.end(seconds)
    return watch


def silent(watch: PassWatchdog, seconds: float, *, busy: bool = True, begun: float = 0.0) -> bool:
    for second in range(int(seconds) + 1):
        watch.tick(begun + second, busy=busy, mark=7)
    return watch.is_stuck


@pytest.mark.parametrize(
    ("passes", "rows", "fine", "stuck"),
    [
        ([(1, 0.02)], 1, 30, 32),  # a quick machine: hardly more than the patience
        ([(1, 4.0)], 1, 69, 72),  # a slow one: ten passes more
        ([(1, 0.1)], 256, 285, 288),  # a long first chunk after steps of one row each
        ([(256, 20.0)], 1, 229, 232),  # a step after a long chunk: longer contexts may take as long
        ([], 256, 299, 302),  # nothing known yet: weights may still come from a slow disk
    ],
)
def test_how_long_a_pass_may_be_silent_follows_from_what_passes_took(
    passes: list[tuple[int, float]], rows: int, fine: int, stuck: int
) -> None:
    for seconds, expected in ((fine, False), (stuck, True)):
        watch = used(*passes)
        watch.begin(rows)
        assert silent(watch, seconds) is expected, seconds


def test_an_idle_stage_is_never_stuck() -> None:
    assert not silent(used((1, 0.01)), 10_000, busy=False)


def test_any_sign_of_progress_starts_the_count_anew() -> None:
    watch = used((1, 0.01))
    for second in range(1000):
        watch.tick(second, busy=True, mark=second // 25)  # a layer of a very long chunk every 25 s
    assert not watch.is_stuck


def test_a_process_that_was_stopped_does_not_take_its_own_pause_for_a_stuck_engine() -> None:
    watch = used((1, 0.01))
    watch.tick(0.0, busy=True, mark=1)
    watch.tick(0.5, busy=True, mark=1)
    watch.tick(600.0, busy=True, mark=1)
    assert not watch.is_stuck


def test_what_was_stuck_is_well_again_only_after_some_quiet() -> None:
    watch = used((1, 0.01))
    assert silent(watch, 40)
    assert "no progress for 30.1 s (passes took up to 0.01 s before)" in watch.reason
    told = watch.reason
    assert silent(watch, 14, busy=False, begun=41)
    assert watch.reason == told
    assert not silent(watch, 2, busy=False, begun=56)
    assert watch.reason == ""


def test_one_slow_pass_is_not_remembered_for_ever() -> None:
    watch = used((1, 300.0), *[(1, 0.02)] * 200)
    assert watch.allowed < 32


@given(
    st.lists(st.tuples(st.integers(1, 512), st.floats(0.001, 60.0)), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 200), st.booleans()), max_size=50),
)
def test_a_pass_within_ten_times_the_longest_before_it_is_never_stuck(
    passes: list[tuple[int, float]], ticks: list[tuple[int, bool]]
) -> None:
    """Whatever the ticks: late, early, many."""
    watch = used(*passes)
    watch.begin(1)
    now, silence = 0.0, 0.0
    watch.tick(now, busy=True, mark=0)
    for tenths, moved in ticks:
        now += tenths / 10
        silence = 0.0 if moved else silence + min(tenths / 10, LONGEST_TICK)
        watch.tick(now, busy=not moved, mark=0)
        if silence <= 10 * passes[-1][1]:
            assert not watch.is_stuck or silence == 0.0
        if watch.is_stuck:
            return
