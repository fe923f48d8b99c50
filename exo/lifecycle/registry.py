"""Every resource alive in this process, held weakly: the source for monitor, metrics, dashboard."""

from __future__ import annotations

import itertools
import weakref
from typing import Final

from exo.lifecycle.core.subject import Subject

# Keyed by a running number: the oldest first, and independent of how subclasses define equality.
_live: Final[weakref.WeakValueDictionary[int, Subject]] = weakref.WeakValueDictionary()
_numbers: Final = itertools.count()


def register(resource: Subject) -> None:
    """List the resource for as long as something else keeps it alive."""
    _live[next(_numbers)] = resource


def live_resources(resource_type: str | None = None) -> tuple[Subject, ...]:
    """A snapshot of all live resources, or of those of one type; oldest first."""
    found = [resource for _, resource in sorted(_live.items())]
    return tuple(r for r in found if resource_type is None or r.resource_type == resource_type)
