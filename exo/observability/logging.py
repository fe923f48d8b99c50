"""Structured logs on standard error: JSON lines or a console. Every state transition is one event.

structlog does the work, for our own loggers and for those of the standard library alike. Fields
come from `extra=`, or are bound with `structlog.contextvars`, which keeps concurrent tasks apart.
What is logged about a sequence carries its ids (see `request_ids`), so that one request can be
followed through the logs of all nodes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor

from exo.lifecycle import ResourceState, StateChange, add_global_listener
from exo.lifecycle.events import DegradationChange, HookRun, LifecycleEvent, Recovered, TaskEnded

LEVELS: Final = ("debug", "info", "warning", "error", "critical")
Format = Literal["json", "console"]

_S = ResourceState
# States worth more than an info line.
_LEVEL_OF: Final = {_S.DEGRADED: logging.WARNING, _S.ERROR: logging.ERROR}

_remove_listener: Callable[[], None] | None = None


def configure_logging(
    format: Format = "console", level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up the process's logging; may be called again. ValueError names a bad format or level."""
    if format not in ("json", "console"):
        raise ValueError(f"log-format: {format!r} is neither json nor console")
    if not isinstance(level, str) or level.lower() not in LEVELS:
        raise ValueError(f"log-level: {level!r} is not one of {', '.join(LEVELS)}")
    target = sys.stderr if stream is None else stream
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(format, target),
            ],
        )
    )
    structlog.configure(
        processors=[*shared[:-1], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    log_lifecycle()


def log_lifecycle() -> None:
    """Log the lifecycle's events from now on; once, however often it is called."""
    global _remove_listener
    if _remove_listener is not None:
        _remove_listener()
    _remove_listener = add_global_listener(log_event)


def log_event(event: LifecycleEvent) -> None:
    """One log line for one event; task starts and hook runs only at debug level."""
    log = structlog.stdlib.get_logger("exo.lifecycle")
    match event:
        case StateChange():
            log.log(_LEVEL_OF.get(event.new, logging.INFO), "transition", **transition(event))
        case Recovered():
            log.info("recovered", resource_id=event.resource_id, resource_type=event.resource_type)
        case HookRun():
            log.debug(
                "hook",
                resource_id=event.resource_id,
                hook=event.hook,
                outcome=event.outcome,
                duration=event.seconds,
            )
        case DegradationChange():
            log.log(
                logging.WARNING if event.active else logging.INFO,
                "degraded" if event.active else "restored",
                resource_id=event.resource_id or None,
                degradation=event.name,
                to=event.to,
                reason=event.reason,
            )
        case TaskEnded(outcome="failed"):
            log.error(
                "task failed", resource_id=event.owner, task=event.name, error=repr(event.error)
            )
        case _:
            pass


def transition(change: StateChange) -> dict[str, Any]:
    """The fields of a transition's log line; `duration`: seconds spent in the state that was
    left.
    """
    return {
        "resource_id": change.resource_id,
        "resource_type": change.resource_type,
        "from": change.old.name,
        "to": change.new.name,
        "reason": change.reason,
        "duration": round(change.seconds, 6),
    }


def _renderers(format: Format, stream: TextIO) -> list[Processor]:
    if format == "console":
        # The pretty formatter takes seconds per traceback, on the event loop, and prints the values
        # of variables.
        plain = structlog.dev.plain_traceback
        return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
    return [
        structlog.processors.ExceptionRenderer(
            structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
        ),
        _printable,
        # Whatever cannot be written as JSON is written as its text: a log call never fails.
        structlog.processors.JSONRenderer(default=repr, skipkeys=True),
    ]


def _printable(_: Any, __: str, event: EventDict) -> EventDict:
    return {str(key): value for key, value in event.items()}
