"""Every error the lifecycle raises. Each carries `resource_id` and the `state` the resource was in.

ResourceError
+-- ResourceInitializationError     the init hook failed; the cause is chained
|   +-- ResourceInitializationTimeout   ... because it ran out of time: also a ResourceTimeout
+-- ResourceTimeout                 also a TimeoutError
+-- ResourceClosed                  closing or closed: a late call never re-opens it
+-- ResourceUnavailable             not now, or not for this caller
+-- ResourceDegraded                raised by a health hook: serving, but less well
+-- IllegalTransition               a move that the table of states does not have
+-- ReentrantCall                   a hook called its own resource's lifecycle
"""

from __future__ import annotations

import traceback

from exo.lifecycle.core.state import ResourceState


class ResourceError(Exception):
    """Root of the lifecycle's errors."""

    def __init__(
        self, message: str, *, resource_id: str = "", state: ResourceState | None = None
    ) -> None:
        super().__init__(message)
        self.resource_id = resource_id
        self.state = state


class ResourceInitializationError(ResourceError):
    """`initialize` or `recover` failed, was rolled back, and left the resource in ERROR."""


class ResourceTimeout(ResourceError, TimeoutError):
    """A hook, or the caller's own wait, ran out of time."""


class ResourceInitializationTimeout(ResourceInitializationError, ResourceTimeout):
    """The init hook ran out of `initialize_timeout`."""


class ResourceClosed(ResourceError):
    """The resource is closing or closed."""


class ResourceUnavailable(ResourceError):
    """The resource cannot do this now."""


class ResourceDegraded(ResourceError):
    """Raised by a health hook: the resource serves, but less well; the message says how.

    Never counts towards ERROR.
    """


class IllegalTransition(ResourceError):
    """The table of states has no such move. Nothing was changed."""


class ReentrantCall(ResourceError):
    """A hook called its own resource's lifecycle, which would wait for itself."""


def let_go(error: BaseException) -> None:
    """Clear the local variables in the tracebacks of the error and of the whole chain behind it.

    `last_error` is kept for a long time. Without this it would keep alive, and open, whatever the
    failed hook held in local variables. The text of the traceback stays the same.
    """
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        each = chain.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        traceback.clear_frames(each.__traceback__)
        chain += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            chain += each.exceptions
