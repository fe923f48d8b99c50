"""Every error has its status and OpenAI's shape."""

from __future__ import annotations

import pytest
from starlette.exceptions import HTTPException

from exo.api.problems import TooLarge, TooSlow, Unauthorized, problem_of
from exo.inference import errors
from exo.lifecycle import ResourceClosed


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.InvalidRequest("no", field="n"), 400, None),
        (errors.ContextExceeded(9, 8), 400, "context_length_exceeded"),
        (errors.ModelNotFound("x", ("a", "b")), 404, "model_not_found"),
        (Unauthorized("no key"), 401, "invalid_api_key"),
        (TooLarge(10), 413, "request_too_large"),
        (TooSlow(10), 408, "request_timeout"),
        (errors.Overloaded("full", retry_after=2.2), 429, "overloaded"),
        (errors.NodeDraining("leaving"), 503, "draining"),
        (errors.RingUnavailable("no plan"), 503, "unavailable"),
        (errors.CheckpointError("bad", path="x"), 503, "unavailable"),
        (errors.UnsupportedModel("odd", path="x", supported=("llama",)), 503, "unavailable"),
        (ResourceClosed("closed"), 503, "unavailable"),
        (HTTPException(405), 405, "method_not_allowed"),
        (ValueError("a secret path"), 500, None),
    ],
)
def test_each_error_has_its_status(error: Exception, status: int, code: str | None) -> None:
    problem = problem_of(error)
    assert (problem.status, problem.code) == (status, code)
    assert set(problem.body()["error"]) == {"message", "type", "param", "code"}


def test_every_error_of_requests_is_in_the_table() -> None:
    # Never leaves the ring: a defect if it does.
    made = {errors.SequenceLost("r", expected=1, held=None)}
    for kind in errors.ExoError.__subclasses__():
        if kind not in {type(one) for one in made} | {
            errors.InvalidRequest,
            errors.CheckpointError,
            errors.Overloaded,
        }:
            assert problem_of(kind("x")).status != 500, kind


def test_a_defect_of_the_server_is_not_described() -> None:
    assert "secret" not in problem_of(ValueError("a secret path")).message


def test_the_models_there_are_are_named() -> None:
    problem = problem_of(errors.ModelNotFound("x", ("tiny", "huge")))
    assert "tiny, huge" in problem.message
    assert problem.param == "model"


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (1.0, "1"), (2.2, "3")])
def test_retry_after_is_whole_seconds_and_never_zero(seconds: float, header: str) -> None:
    assert (
        problem_of(errors.Overloaded("full", retry_after=seconds)).headers["Retry-After"] == header
    )
