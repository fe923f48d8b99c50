"""Finds out whether what a process holds is a leak, or only takes a moment to go. For tests.

Closing is not always done when the call returns: a transport closes its socket in a later turn of
the event loop, a library in a thread of its own, an executor's threads end by themselves. Such
things get patience. For the rest there is nothing left that would close it, and a short moment is
enough to be sure.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from typing import Final

from exo.lifecycle.testing.holdings import Holdings, Kind, Leak, descriptor_of

__all__ = ["Holdings", "LeakDetector", "gained_since"]

# What may still go when the moment is over.
LINGERING: Final = frozenset({Kind.THREAD, Kind.SOCKET})
# Seconds that everything gets: enough for a callback from a thread.
MOMENT: Final = 0.3
# Turns of the event loop before the first pause.
_TURNS: Final = 3
# Each pause is twice as long as the one before, up to the longest.
_FIRST_PAUSE: Final = 0.001
_LONGEST_PAUSE: Final = 0.05
# What only the garbage collector closes is late, but not leaked: whether it is found must not
# depend on when the collector runs. Not run at once, because it is slow and seldom needed.
_COLLECT_AFTER: Final = 0.007


async def gained_since(before: Holdings, patience: float) -> list[str]:
    """What is held now and was not before, and did not go within up to `patience` seconds."""
    return [str(leak) for leak in await LeakDetector(patience).leaks_since(before)]


class LeakDetector:
    """Compares holdings, and waits for those that may still go.

    A kind that was found to leak after all the waiting is not waited for again. Otherwise one leak
    would cost the whole patience in each scenario of a suite.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._confirmed: set[Kind] = set()
        # Seconds of pauses so far.
        self.waited = 0.0

    async def leaks_since(self, before: Holdings) -> list[Leak]:
        """What is held now and was not before; returns as soon as that is nothing.

        The pauses themselves are added up, not the time that passes: on a busy machine everything
        takes longer, closing too.
        """
        if not self._compare(before):
            return []
        for _ in range(_TURNS):
            await asyncio.sleep(0)
        limit = min(MOMENT, self._patience)
        waited, pause, collected = 0.0, _FIRST_PAUSE, False
        while leaks := self._compare(before):
            unconfirmed = {leak.kind for leak in leaks} - self._confirmed
            if not unconfirmed:
                break
            if collected and waited >= limit:
                if waited >= self._patience or not _may_go(unconfirmed, before):
                    break
                limit = self._patience
            if not collected and waited >= _COLLECT_AFTER:
                gc.collect()
                collected = True
                continue
            await asyncio.sleep(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_PAUSE)
        self.waited += waited
        leaks = [leak for leak in leaks if leak.is_ours()]
        self._confirmed |= {leak.kind for leak in leaks}
        return leaks

    def _compare(self, before: Holdings) -> list[Leak]:
        return Holdings.now(before.folder).gained_since(before)


def _may_go(kinds: set[Kind], before: Holdings) -> bool:
    """Whether something may still close what was gained."""
    if kinds & LINGERING == {Kind.SOCKET}:
        gained = Holdings.now().sockets - before.sockets
        return not gained or not gained <= _kept_open()
    return bool(kinds & LINGERING)


def _kept_open() -> frozenset[str]:
    """The sockets that Python objects own and that no transport is closing.

    The others belong to C libraries, whose threads we cannot see, or are about to go.
    """
    # By type, not by isinstance: a proxy may do anything when asked for its class.
    objects = gc.get_objects()
    transports = [each for each in objects if issubclass(type(each), asyncio.Transport)]
    closing = {_number_of(each) for each in transports if each.is_closing()}
    owners = [each for each in objects if issubclass(type(each), socket.socket)]
    return frozenset(
        descriptor_of(owner.fileno()) for owner in owners if owner.fileno() not in closing
    )


def _number_of(transport: asyncio.BaseTransport) -> int:
    """The descriptor of the transport's socket; -1 where it has none."""
    owned = transport.get_extra_info("socket")
    return -1 if owned is None else int(owned.fileno())
