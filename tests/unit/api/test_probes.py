"""The health endpoints: what the monitor reports, what the node adds, and draining."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from api_fakes import CHAT, FakeMonitor, Fakes, FakeView, ask

from exo.lifecycle import ResourceState


@pytest.mark.parametrize(
    ("monitor", "view", "live", "started", "ready"),
    [
        (FakeMonitor(), FakeView(), 200, 200, 200),
        (
            FakeMonitor(started={"engine": "loading"}, ready={"engine": "loading"}),
            FakeView(progress="loading model 43 %"),
            200,
            503,
            503,
        ),
        (FakeMonitor(ready={"engine": "error: pulled the plug"}), FakeView(), 200, 200, 503),
        (FakeMonitor(), FakeView(progress="2 requests run", is_draining=True), 200, 200, 503),
        (FakeMonitor(), FakeView(progress=None, is_draining=True), 200, 200, 503),
        (FakeMonitor(), FakeView(progress="draining is only a word here"), 200, 200, 200),
        (FakeMonitor(), FakeView(progress="loading layers 10-19"), 200, 200, 200),
        (FakeMonitor(live={"event_loop": "no progress for 31 s"}), FakeView(), 503, 200, 200),
    ],
)
async def test_probes_say_what_the_monitor_says(
    monitor: FakeMonitor, view: FakeView, live: int, started: int, ready: int
) -> None:
    async with Fakes(monitor=monitor, view=view).http() as http:
        answers = [await http.get(path) for path in ("/livez", "/startupz", "/readyz")]
    assert [answer.status_code for answer in answers] == [live, started, ready]
    for answer in answers:
        body = answer.json()
        assert (body["status"] == "ok") == (answer.status_code == 200) == (not body["failing"])


async def test_a_probe_that_fails_names_the_resource_and_the_reason() -> None:
    fakes = Fakes(monitor=FakeMonitor(ready={"inference_engine-1": "error: pulled the plug"}))
    async with fakes.http() as http:
        body = (await http.get("/readyz")).json()
    assert body == {
        "status": "unavailable",
        "failing": {"inference_engine-1": "error: pulled the plug"},
    }


async def test_while_loading_the_probe_says_how_far() -> None:
    fakes = Fakes(
        monitor=FakeMonitor(started={"model": "initializing"}),
        view=FakeView(progress="loading model 43 %"),
    )
    async with fakes.http() as http:
        body = (await http.get("/startupz")).json()
        asked = await http.post("/v1/chat/completions", json=CHAT)
    assert body["failing"] == {"model": "initializing", "node": "loading model 43 %"}
    assert asked.status_code == 503
    assert "43 %" in asked.json()["error"]["message"]


async def test_verbose_lists_every_resource() -> None:
    health = SimpleNamespace(
        resource_type="server",
        state=ResourceState.READY,
        healthy=True,
        required=True,
        reason=None,
        last_error=None,
        latency_seconds=0.0012,
        checked_ago_seconds=1.5,
    )
    async with Fakes(monitor=FakeMonitor(resources={"server-a": health})).http() as http:
        body = (await http.get("/readyz?verbose")).json()
    assert body["resources"]["server-a"]["state"] == "ready"
    assert body["resources"]["server-a"]["latency_ms"] == 1.2


async def test_a_draining_node_takes_nothing_new() -> None:
    view = FakeView(progress="draining: 1 requests run", is_draining=True)
    answer = await ask(Fakes(view=view), **CHAT)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "draining")


@pytest.mark.parametrize("is_draining", [False, True])
async def test_the_pages_learn_of_a_drain_from_a_field(is_draining: bool) -> None:
    view = FakeView(progress="2 requests run", is_draining=is_draining)
    async with Fakes(view=view).http() as http:
        assert (await http.get("/api/v1/resources")).json()["draining"] is is_draining
        for page in ("/", "/chat"):
            assert ".draining" in (await http.get(page)).text
