"""Named degradations: what runs on a fallback at present, why, since when, and for which resource.

A declared degradation is not a failed check: the resource serves and is DEGRADED. It stays so until
the degradation is withdrawn or the resource is closed or initialized again. One that the init hook
declares shows when the hook has returned. Logs receive each change as an event; metrics and
dashboard read `degradations()`.
"""

from __future__ import annotations

from typing import Final

from exo.lifecycle.core import arguments
from exo.lifecycle.core.degradation import Degradation
from exo.lifecycle.core.subject import Subject
from exo.lifecycle.events import DegradationChange, publish
from exo.lifecycle.registry import live_resources

__all__ = ["Degradation", "degradations", "degrade", "restore"]

# Those that belong to no resource.
_process_wide: Final[dict[str, Degradation]] = {}


def degrade(
    name: str, *, to: str, reason: str | BaseException, resource: Subject | None = None
) -> Degradation:
    """Declare that `name` runs on `to` from now on; `resource`, if given, becomes DEGRADED.

    Declaring the same name again replaces the earlier declaration.
    """
    arguments.text("degrade", "name", name)
    arguments.text(f"degrade {name!r}", "to", to)
    text = (str(reason) or repr(reason)) if isinstance(reason, BaseException) else reason
    arguments.text(f"degrade {name!r}", "reason", text)
    if resource is None:
        made = _process_wide[name] = Degradation(name, to, text)
    else:
        made = Degradation(name, to, text, resource.resource_id, resource.resource_type)
        resource.declare_degradation(made)
    _publish(made, text, active=True)
    return made


def restore(name: str, *, resource: Subject | None = None) -> bool:
    """Withdraw a degradation; False when there was none.

    The next health check that passes brings the resource back to READY.
    """
    if resource is None:
        ended = _process_wide.pop(name, None)
    else:
        ended = resource.withdraw_degradation(name)
    if ended is None:
        return False
    _publish(ended, "restored", active=False)
    return True


def degradations() -> tuple[Degradation, ...]:
    """All that hold at present, oldest first."""
    held = [
        made for resource in live_resources() for made in resource.declared_degradations.values()
    ]
    return tuple(sorted([*_process_wide.values(), *held], key=lambda made: made.since))


def _publish(made: Degradation, reason: str, *, active: bool) -> None:
    publish(
        DegradationChange(
            made.resource_id, made.resource_type, made.name, made.to, reason, active=active
        )
    )
