"""For tests of a running node only: makes a named resource fail or hang. Off by default.

`use_folder` names a folder that the tester writes to. While it holds a file named like a resource's
type or id, each health check of that resource fails with the file's text as the reason, at the
point where the real check would have run. State, probes, metrics and the ExoNode's conditions
follow as they would for a real failure, and recover when the file is removed.

While the folder holds `hang-<type or id>`, each piece of work of that resource hangs in its thread,
as in a driver that never returns. Nothing reports it: the node has to notice.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

from exo.lifecycle.core.subject import Subject

POLL_SECONDS: Final = 0.05

_folder: Path | None = None


def use_folder(path: str | os.PathLike[str] | None) -> None:
    """Take faults from this folder from now on; None turns them off."""
    global _folder
    _folder = None if path is None else Path(path)


def injected_fault(resource: Subject) -> str | None:
    """The reason that the tester wrote, or None."""
    for path in _files(resource):
        try:
            text = path.read_text(errors="replace").strip()
        except OSError:
            continue
        return text or "a fault is injected"
    return None


def is_hanging(resource: Subject) -> bool:
    """Whether its work is to hang now. Costs next to nothing while faults are off."""
    return any(path.is_file() for path in _files(resource, "hang-"))


def hang(resource: Subject) -> None:
    """Block this thread until the tester has removed the file."""
    while is_hanging(resource):
        time.sleep(POLL_SECONDS)


def _files(resource: Subject, prefix: str = "") -> list[Path]:
    if _folder is None:
        return []
    names = (resource.resource_id, resource.resource_type)
    return [_folder / f"{prefix}{name.replace(os.sep, '_')}" for name in names]
