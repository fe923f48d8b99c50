"""`LifeRecord`: the facts about one resource that its flights share and change."""

from __future__ import annotations

from exo.lifecycle.core.subject import Subject
from exo.lifecycle.errors import ResourceError
from exo.lifecycle.states import StateMachine
from exo.lifecycle.statistics import Counts


class LifeRecord:
    """Written by the lifecycle and by the health checks of one resource.

    opened: an init hook began since the cleanup hook last ran, so there may be something to close.
    life: counts attempts to start and cleanups; what belongs to an earlier life is dropped.
    """

    __slots__ = ("counts", "last_error", "life", "machine", "opened", "subject")

    def __init__(self, subject: Subject, machine: StateMachine) -> None:
        self.subject = subject
        self.machine = machine
        self.counts = Counts()
        self.last_error: BaseException | None = None
        self.opened = False
        self.life = 0

    def hook_began(self, name: str) -> None:
        """From the first step of the init hook to the first step of the cleanup hook there may be
        something to close. A hook that is cancelled before its first step changes nothing.
        """
        if name != "health_check":
            self.opened = name == "initialize"

    def error(self, kind: type[ResourceError], what: str) -> ResourceError:
        """An error that names the resource and carries its state."""
        subject = self.subject
        message = f"{subject.resource_type} {subject.resource_id!r} {what}"
        return kind(message, resource_id=subject.resource_id, state=self.machine.state)
