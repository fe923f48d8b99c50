"""Every resource alive in this process, held weakly: what monitor,
metrics and dashboard look at.
"""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from exo.lifecycle.resource import AsyncResource

# Keyed by a running number: oldest first, and equality or hashing of subclasses plays no part.
_live: Final[weakref.WeakValueDictionary[int, AsyncResource]] = weakref.WeakValueDictionary()
_numbers: Final = itertools.count()


def register(resource: AsyncResource) -> None:
    _live[next(_numbers)] = resource


def live_resources(resource_type: str | None = None) -> tuple[AsyncResource, ...]:
    """A snapshot, oldest first; of one `resource_type`, or all."""
    found = [resource for _, resource in sorted(_live.items())]
    return tuple(r for r in found if resource_type is None or r.resource_type == resource_type)
