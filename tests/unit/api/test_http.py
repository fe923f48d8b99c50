"""The HTTP surface: models, keys, request ids, metrics, the access log, pages."""

from __future__ import annotations

import json

import pytest
from api_fakes import CHAT, Fakes, ask
from structlog.typing import EventDict

from exo.api.settings import ApiSettings
from exo.contract import (
    METRIC_RESIDENT_MEMORY,
    METRIC_TIME_TO_FIRST_TOKEN,
    METRIC_TOKENS_PER_SECOND,
)
from exo.inference import errors


async def test_models_are_listed_and_found() -> None:
    async with Fakes().http() as http:
        listed = (await http.get("/v1/models")).json()
        one = (await http.get("/v1/models/tiny")).json()
    assert listed == {"object": "list", "data": [one]}
    assert (one["id"], one["object"], one["owned_by"]) == ("tiny", "model", "exo")


@pytest.mark.parametrize("path", ["/v1/models", "/api/v1/ring"])
async def test_a_key_is_asked_for_where_one_is_set(path: str) -> None:
    fakes = Fakes(settings=ApiSettings(api_key="right"))
    async with fakes.http() as http:
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Bearer wrong"})).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Basic right"})).status_code == 401
        assert (await http.get(path, headers={"Authorization": "Bearer right"})).status_code == 200
        for open_to_all in ("/livez", "/readyz", "/metrics", "/", "/chat"):
            assert (await http.get(open_to_all)).status_code == 200


async def test_the_request_id_is_the_clients_where_it_is_sane() -> None:
    async with Fakes().http() as http:
        own = await http.get("/v1/models", headers={"X-Request-Id": "abc-1"})
        made = await http.get("/v1/models", headers={"X-Request-Id": "a b\tc"})
    assert own.headers["x-request-id"] == "abc-1"
    assert made.headers["x-request-id"].startswith("req_")


async def test_totals_count_what_was_answered_and_what_failed() -> None:
    fakes = Fakes()
    async with fakes.http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        fakes.backend.error = errors.RingUnavailable("x")
        await http.post("/v1/chat/completions", json=CHAT)
        totals = (await http.get("/api/v1/requests")).json()["totals"]
    assert totals == {"answered": 1, "failed": 1, "prompt_tokens": 6, "completion_tokens": 7}


async def test_the_log_counts_the_prompt_once_like_the_usage(logs: list[EventDict]) -> None:
    await ask(Fakes(), "/v1/completions", model="tiny", prompt=["a", "bbb"], n=2, max_tokens=1)
    (line,) = [event for event in logs if event["event"] == "request"]
    assert (line["prompt_tokens"], line["completion_tokens"]) == (4, 4)


async def test_metrics_count_requests_by_route_and_never_by_path() -> None:
    async with Fakes().http() as http:
        await http.post("/v1/chat/completions", json=CHAT)
        await http.get("/some/scanner/path")
        text = (await http.get("/metrics")).text
    assert 'exo_api_requests_total{method="POST",route="/v1/chat/completions",status="200"}' in text
    assert 'route="other",status="404"' in text
    assert "scanner" not in text
    assert "exo_api_time_to_first_token_seconds_count" in text


@pytest.mark.parametrize(
    "name", [METRIC_TOKENS_PER_SECOND, METRIC_TIME_TO_FIRST_TOKEN, METRIC_RESIDENT_MEMORY]
)
async def test_the_metrics_that_the_operator_reads_are_there(name: str) -> None:
    async with Fakes().http() as http:
        text = (await http.get("/metrics")).text
    assert f"# HELP {name} " in text


async def test_the_access_log_says_what_a_completion_took(logs: list[EventDict]) -> None:
    await ask(Fakes(), **CHAT)
    (line,) = [event for event in logs if event["event"] == "request"]
    assert (line["status"], line["model"], line["prompt_tokens"], line["completion_tokens"]) == (
        200,
        "tiny",
        6,
        7,
    )
    assert line["first_token_ms"] >= 0


async def test_probes_do_not_fill_the_log(logs: list[EventDict]) -> None:
    async with Fakes().http() as http:
        await http.get("/livez")
        await http.get("/api/v1/ring")
    assert {event["log_level"] for event in logs} == {"debug"}


@pytest.mark.parametrize("path", ["/", "/chat"])
async def test_pages_load_nothing_from_elsewhere(path: str) -> None:
    async with Fakes().http() as http:
        answer = await http.get(path)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    outside = [
        part[:60]
        for part in answer.text.split("http")[1:]
        if not part.startswith("://www.w3.org/2000/svg")
    ]
    assert [part for part in outside if part.startswith(("://", "s://"))] == []


async def test_the_openapi_document_stands_alone() -> None:
    async with Fakes().http() as http:
        document = (await http.get("/openapi.json")).json()
    body = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"
    ]["schema"]
    assert "messages" in body["properties"]
    assert "$ref" not in json.dumps(body)
