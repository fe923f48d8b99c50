"""For tests of a running node only: makes a named resource fail or hang. Off unless `EXO_FAULT_DIR`
is set.

While `$EXO_FAULT_DIR/<resource type or resource id>` is a file, each health check of that resource
fails with the file's content as the reason, just where the real check would have run: its state,
the probes, the metrics and the ExoNode's conditions follow as they would for a true failure, and
come back when the file is removed.

While `$EXO_FAULT_DIR/hang-<resource type or resource id>` is a file, each piece of work of that
resource hangs in its thread, as in a driver that never returns; nothing else of the node notices by
itself.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from exo.lifecycle.resource import AsyncResource

FAULT_DIR: Final = "EXO_FAULT_DIR"


def injected_fault(resource: AsyncResource) -> str | None:
    """The reason that the tester wrote, or None."""
    folder = os.environ.get(FAULT_DIR)
    if not folder:
        return None
    for path in _files(folder, resource):
        try:
            text = path.read_text(errors="replace").strip()
        except OSError:
            continue
        return text or "a fault is injected"
    return None


def is_hanging(resource: AsyncResource) -> bool:
    """Costs next to nothing where the variable is not set."""
    folder = os.environ.get(FAULT_DIR)
    return folder is not None and any(path.is_file() for path in _files(folder, resource, "hang-"))


def hang(resource: AsyncResource) -> None:
    """Blocks its thread until the tester has removed the file."""
    while is_hanging(resource):
        time.sleep(0.05)


def _files(folder: str, resource: AsyncResource, prefix: str = "") -> list[Path]:
    names = (resource.resource_id, resource.resource_type)
    return [Path(folder) / f"{prefix}{name.replace(os.sep, '_')}" for name in names]
