"""The AsyncResource pattern: one state, one way up, one way down and a health check for everything
that is started and stopped.

Knows nothing of models, HTTP or gRPC. docs/lifecycle.md is the tour.
"""

from exo.lifecycle.core.state import TRANSITIONS, ResourceState, StateChange
from exo.lifecycle.errors import (
    IllegalTransition,
    ReentrantCall,
    ResourceClosed,
    ResourceDegraded,
    ResourceError,
    ResourceInitializationError,
    ResourceInitializationTimeout,
    ResourceTimeout,
    ResourceUnavailable,
)
from exo.lifecycle.events import add_global_listener
from exo.lifecycle.group import ResourceGroup
from exo.lifecycle.registry import live_resources
from exo.lifecycle.resource import AsyncResource
from exo.lifecycle.statistics import ResourceStatistics
from exo.lifecycle.tasks import TaskHandle, TaskManager, TaskPriority

__all__ = [
    "TRANSITIONS",
    "AsyncResource",
    "IllegalTransition",
    "ReentrantCall",
    "ResourceClosed",
    "ResourceDegraded",
    "ResourceError",
    "ResourceGroup",
    "ResourceInitializationError",
    "ResourceInitializationTimeout",
    "ResourceState",
    "ResourceStatistics",
    "ResourceTimeout",
    "ResourceUnavailable",
    "StateChange",
    "TaskHandle",
    "TaskManager",
    "TaskPriority",
    "add_global_listener",
    "live_resources",
]
