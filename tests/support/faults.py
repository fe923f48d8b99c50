"""Faults on demand in a running node: see `exo/lifecycle/faults.py`."""

from __future__ import annotations

from pathlib import Path


def inject(folder: Path, kind: str, reason: str) -> Path:
    """Make the health checks of resources of this type fail, until the returned file is removed.

    The file appears with all its text at once, because a check may read it at any moment.
    """
    fault = folder / kind
    fault.with_suffix(".new").write_text(reason)
    return fault.with_suffix(".new").rename(fault)
