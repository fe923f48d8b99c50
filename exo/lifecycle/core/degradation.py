"""The record of one named degradation. Imports nothing of ours."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Degradation:
    """What runs on a fallback.

    name: what is degraded.
    to: what serves in its place.
    resource_id: "" where it concerns the whole process.
    since: monotonic seconds.
    """

    name: str
    to: str
    reason: str
    resource_id: str = ""
    resource_type: str = ""
    since: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.name} runs on {self.to}: {self.reason}"
