"""Named degradations: what runs on a fallback at present, why, since when, and for which resource.

A declared degradation is no failed check: the resource serves, and is DEGRADED from the declaration
(or, declared by its init hook, from the end of that) until it is withdrawn, closed or initialized
anew. Logs hear of it as an event, metrics and dashboard read `degradations()`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from exo.lifecycle.core import arguments
from exo.lifecycle.events import DegradationChange, publish
from exo.lifecycle.registry import live_resources

if TYPE_CHECKING:
    from exo.lifecycle.resource import AsyncResource

# Those that belong to no resource.
_process_wide: Final[dict[str, Degradation]] = {}


@dataclass(frozen=True, slots=True)
class Degradation:
    """`name`: what is degraded; `to`: what serves instead; `resource_id`: "" for the whole process.

    `since`: monotonic seconds.
    """

    name: str
    to: str
    reason: str
    resource_id: str = ""
    resource_type: str = ""
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.name} runs on {self.to}: {self.reason}"


def degrade(
    name: str, *, to: str, reason: str | BaseException, resource: AsyncResource | None = None
) -> Degradation:
    """Declare that `name` runs on `to` from now on; declaring it again replaces it. `resource`
    becomes DEGRADED.
    """
    arguments.text("degrade", "name", name)
    arguments.text(f"degrade {name!r}", "to", to)
    text = (str(reason) or repr(reason)) if isinstance(reason, BaseException) else reason
    arguments.text(f"degrade {name!r}", "reason", text)
    if resource is None:
        made = _process_wide[name] = Degradation(name, to, text)
    else:
        made = Degradation(name, to, text, resource.resource_id, resource.resource_type)
        resource._lifecycle.declare(made)
    publish(DegradationChange(made.resource_id, made.resource_type, name, to, text, active=True))
    return made


def restore(name: str, *, resource: AsyncResource | None = None) -> bool:
    """Withdraw a degradation; False when there was none. The next health check brings the resource
    back to READY.
    """
    gone = (
        _process_wide.pop(name, None)
        if resource is None
        else resource._lifecycle.declared.pop(name, None)
    )
    if gone is None:
        return False
    publish(
        DegradationChange(
            gone.resource_id, gone.resource_type, name, gone.to, "restored", active=False
        )
    )
    return True


def degradations() -> tuple[Degradation, ...]:
    """All that hold at present, oldest first."""
    held = [made for resource in live_resources() for made in resource._lifecycle.declared.values()]
    return tuple(sorted([*_process_wide.values(), *held], key=lambda made: made.since))
