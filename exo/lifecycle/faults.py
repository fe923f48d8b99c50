"""For tests of a running node only: makes a named resource's health check fail. Off unless `EXO_FAULT_DIR` is set.

While `$EXO_FAULT_DIR/<resource type or resource id>` is a file, each health check of that resource fails with the
file's content as the reason, just where the real check would have run: its state, the probes, the metrics and the
ExoNode's conditions follow as they would for a true failure, and come back when the file is removed.
"""

from __future__ import annotations

import os
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
    for name in (resource.resource_id, resource.resource_type):
        try:
            text = (Path(folder) / name.replace(os.sep, "_")).read_text(errors="replace").strip()
        except OSError:
            continue
        return text or "a fault is injected"
    return None
