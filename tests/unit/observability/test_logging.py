"""Structured logs: one event per transition, JSON that never fails, context per task."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import structlog

from exo.lifecycle import AsyncResource
from exo.observability.logging import configure_logging
from exo.observability.request_ids import ids


class Sequence(NamedTuple):
    request_id: str
    sequence_id: str


class Part(AsyncResource):
    RESOURCE_TYPE = "part"
    fails = False

    async def _do_initialize(self) -> None:
        if self.fails:
            raise OSError("port 1 is busy")


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level, config = list(root.handlers), root.level, structlog.get_config()
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.configure(**config)
    from exo.observability import logging as ours

    if ours._remove_listener is not None:
        ours._remove_listener()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


async def test_each_transition_is_one_json_event_with_its_facts(stream: io.StringIO):
    configure_logging("json", stream=stream)
    part = Part(resource_id="p1")
    await part.initialize()
    await part.cleanup()
    events = [line for line in lines(stream) if line["event"] == "transition"]
    assert [(e["from"], e["to"]) for e in events] == [
        ("UNINITIALIZED", "INITIALIZING"),
        ("INITIALIZING", "READY"),
        ("READY", "CLOSING"),
        ("CLOSING", "CLOSED"),
    ]
    for event in events:
        assert event["resource_id"] == "p1"
        assert event["resource_type"] == "part"
        assert event["reason"]
        assert event["duration"] >= 0
        assert event["level"] == "info"
        assert event["timestamp"].endswith("Z")


async def test_a_failed_start_is_an_error_line_with_the_reason(stream: io.StringIO):
    configure_logging("json", stream=stream)
    part = Part(resource_id="p1")
    part.fails = True
    with pytest.raises(Exception, match="port 1 is busy"):
        await part.initialize()
    (event,) = [line for line in lines(stream) if line.get("to") == "ERROR"]
    assert event["level"] == "error"
    assert "port 1 is busy" in event["reason"]


async def test_a_failing_background_task_is_named(stream: io.StringIO):
    configure_logging("json", stream=stream)

    async def boom() -> None:
        raise RuntimeError("lost it")

    async with Part(resource_id="p1") as part:
        handle = part._task_manager.start_task("worker", boom)
        with pytest.raises(RuntimeError):
            await handle.wait()
        await asyncio.sleep(0)
    (event,) = [line for line in lines(stream) if line["event"] == "task failed"]
    assert (event["resource_id"], event["task"]) == ("p1", "worker")
    assert "lost it" in event["error"]


def test_what_json_cannot_hold_is_written_as_text(stream: io.StringIO):
    configure_logging("json", stream=stream)
    structlog.get_logger("test").info("odd", what=object(), nested={1: {2, 3}}, raw=b"\xff")
    logging.getLogger("plain").warning("standard %s", "library", extra={"thing": object()})
    odd, plain = lines(stream)
    assert "object object" in odd["what"]
    assert plain["event"] == "standard library"
    assert plain["level"] == "warning"


async def test_context_belongs_to_its_task(stream: io.StringIO):
    configure_logging("json", stream=stream)

    async def say(name: str) -> None:
        structlog.contextvars.bind_contextvars(request=name)
        await asyncio.sleep(0)
        structlog.get_logger("test").info("said", by=name)

    await asyncio.gather(*(say(name) for name in "abc"))
    assert all(line["request"] == line["by"] for line in lines(stream))


def test_the_console_form_is_for_people_and_has_no_colours_in_a_file(stream: io.StringIO):
    configure_logging("console", level="WARNING", stream=stream)
    structlog.get_logger("test").info("not this")
    structlog.get_logger("test").warning("but this", port=1)
    assert "but this" in stream.getvalue()
    assert "port=1" in stream.getvalue()
    assert "not this" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


async def test_configuring_twice_logs_each_transition_once(stream: io.StringIO):
    configure_logging("json", stream=stream)
    configure_logging("json", stream=stream)
    await Part(resource_id="p1").cleanup()
    assert len(lines(stream)) == 1


@pytest.mark.parametrize(
    ("format", "level", "field"), [("xml", "info", "log-format"), ("json", "loud", "log-level")]
)
def test_bad_settings_are_named(format: Any, level: str, field: str):
    with pytest.raises(ValueError, match=field):
        configure_logging(format, level=level)


@pytest.mark.parametrize("format", ["json", "console"])
def test_a_line_about_a_sequence_has_its_ids_in_both_forms(stream: io.StringIO, format: Any):
    configure_logging(format, stream=stream)
    opened = Sequence("req_1", "n.1/1/1")
    logging.getLogger("plain").info("replayed after %d tokens", 3, extra=ids(opened))
    if format == "json":
        (line,) = lines(stream)
        assert line["event"] == "replayed after 3 tokens"
        assert (line["request_id"], line["sequence_id"]) == ("req_1", "n.1/1/1")
    else:
        assert "request_id=req_1 sequence_id=n.1/1/1" in stream.getvalue()


def test_the_ids_of_a_line_win_over_those_bound_to_its_task(stream: io.StringIO):
    configure_logging("json", stream=stream)
    with structlog.contextvars.bound_contextvars(request_id="another"):
        logging.getLogger("plain").info("said", extra=ids(Sequence("req_1", "n.1/1/1")))
    assert lines(stream)[0]["request_id"] == "req_1"
