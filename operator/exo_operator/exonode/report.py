"""What a node says about itself, as the planner and the status see it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from exo_operator.api.status import ResourceHealth


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What a node's own endpoints answered. If it is not reachable, everything else is unknown."""

    reachable: bool = False
    ready: bool | None = None
    started: bool | None = None
    # Failing resource -> reason.
    failing: dict[str, str] = field(default_factory=dict)
    resources: tuple[ResourceHealth, ...] = ()
    ring_formed: bool | None = None
    ring_epoch: str | None = None
    ring_size: int | None = None
    # First and last layer, inclusive.
    layers: tuple[int, int] | None = None
    total_layers: int | None = None
    planned_mib: int | None = None
    used_mib: int | None = None
    tokens_per_second: float | None = None
    ttft_ms: float | None = None
    hop_ms: float | None = None

    @property
    def failing_text(self) -> str:
        """The failing resources with their reasons, in a stable order."""
        return "; ".join(
            f"{name}: {reason}" if reason else name for name, reason in sorted(self.failing.items())
        )
