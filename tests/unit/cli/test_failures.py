"""From a chain of errors to the one line that helps."""

from __future__ import annotations

import errno
import itertools

import pytest

from exo.cli.failures import Failure, explain
from exo.cli.settings.options import BY_KEY
from exo.inference.errors import CheckpointError, ContextExceeded, InvalidRequest, ModelNotFound
from exo.lifecycle import ResourceInitializationError
from exo.utils.listening import CannotListen


def chained(*errors: BaseException) -> BaseException:
    """Each is the cause of the one before."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


@pytest.mark.parametrize(
    ("error", "says", "code"),
    [
        (ModelNotFound("x", ("a", "b")), "available: a, b", 2),
        (InvalidRequest("a flag is wrong", field="shards"), "a flag is wrong", 2),
        (ContextExceeded(9, 8), "9 tokens", 1),
        (CheckpointError("truncated", path="m.gguf"), "m.gguf: truncated", 1),
        (Failure("mine", 2), "mine", 2),
        (
            PermissionError(errno.EACCES, "Permission denied", "m.gguf"),
            "m.gguf: Permission denied",
            1,
        ),
        (ValueError("two\nlines"), "two lines", 1),
        (RuntimeError(), "RuntimeError", 1),
    ],
)
def test_an_error_is_one_line_and_a_code(error: BaseException, says: str, code: int) -> None:
    failure = explain(error)
    assert says in str(failure)
    assert "\n" not in str(failure)
    assert failure.code == code


def test_the_cause_is_found_under_resources_and_groups() -> None:
    inner = chained(ResourceInitializationError("model-x failed"), ModelNotFound("x", ("a",)))
    group = ExceptionGroup("group failed to start", [inner])  # type: ignore[list-item]
    failure = explain(chained(ResourceInitializationError("process failed"), group))
    assert failure.code == 2
    assert "available: a" in str(failure)


@pytest.mark.parametrize(
    "setting", ["api_port", "grpc_port", "health_port", "discovery_port", "host"]
)
def test_a_place_where_nothing_can_listen_names_the_flag_that_changes_it(setting: str) -> None:
    busy = CannotListen("::1", 80, setting, OSError(errno.EADDRINUSE, "Address already in use"))
    failure = explain(chained(ResourceInitializationError("api failed"), busy))
    flag = "--" + setting.replace("_", "-")
    assert (
        str(failure)
        == f"cannot listen on ::1 port 80: Address already in use; choose another with {flag}"
    )
    assert failure.code == 1
    assert setting in BY_KEY


def test_a_circular_chain_of_causes_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert explain(first)
