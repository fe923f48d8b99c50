"""The parts of a node as one table: what starts after what, what is checked, what recovers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from exo.lifecycle import AsyncResource, ResourceGroup


@dataclass(frozen=True, slots=True)
class Part:
    """needs: names of the parts that must be up before it starts.
    recovers: an attempt to recover is worth it when it is in ERROR.
    """

    name: str
    resource: AsyncResource
    needs: tuple[str, ...] = ()
    recovers: bool = False


def group_of(node_id: str, parts: Iterable[Part]) -> ResourceGroup:
    """The parts as one resource: they start in the order of their needs and close in reverse."""
    group = ResourceGroup(resource_id=f"parts-{node_id}", display_name=f"Parts of node {node_id}")
    for part in parts:
        group.add(part.resource, name=part.name, depends_on=part.needs)
    return group


async def ailing(parts: Iterable[Part]) -> list[str]:
    """Ids of the parts whose health check fails now."""
    resources = [part.resource for part in parts]
    healthy = await asyncio.gather(*(resource.check_health() for resource in resources))
    return [
        resource.resource_id
        for resource, is_healthy in zip(resources, healthy, strict=True)
        if not is_healthy
    ]
