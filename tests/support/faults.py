"""Faults on demand in a running node: see `exo/lifecycle/faults.py`."""

from __future__ import annotations

from pathlib import Path


def inject(folder: Path, kind: str, reason: str) -> Path:
    """Makes the health checks of resources of this type fail; returns the file, whose removal heals
    them.

    The file is there with all its text at once: a check may look at any moment.
    """
    fault = folder / kind
    fault.with_suffix(".new").write_text(reason)
    return fault.with_suffix(".new").rename(fault)
