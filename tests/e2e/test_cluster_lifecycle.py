"""The local cluster comes up from whatever a killed run has left, and `down` leaves nothing.

Acts on a second, small cluster of its own name on the same engine: the one that the other tests use
stays as it is.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CLUSTER_DIR = Path(__file__).resolve().parents[1] / "cluster"
ENV = {**os.environ, "CLUSTER_NAME": "exo-scratch", "CLUSTER_WORKERS": "0", "CLUSTER_PORT": "0"}
ENV.pop("KUBECONFIG", None)


def cluster(*verb: str, timeout: float = 400) -> str:
    done = subprocess.run(
        [str(CLUSTER_DIR / "cluster"), *verb],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{verb}: {done.stderr}"
    return done.stdout + done.stderr


def up_killed(after_words: str, seconds: float) -> str:
    """Start `up` and kill its whole process group some time after it has said something; what it
    had said by then.
    """
    process = subprocess.Popen(
        [str(CLUSTER_DIR / "cluster"), "up"],
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    while after_words not in said:
        line = process.stdout.readline()
        assert line, f"it ended by itself and never said {after_words!r}: {said}"
        said += line
    time.sleep(seconds)
    assert process.poll() is None, (
        f"it ended by itself within {seconds:.1f} s after {after_words!r}: {said}"
    )
    os.killpg(process.pid, signal.SIGKILL)
    rest, _ = process.communicate(timeout=10)
    return said + rest


def machine() -> list[str]:
    done = subprocess.run(
        [str(CLUSTER_DIR / "machine-state")], env=ENV, capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.fixture
def scratch() -> Iterator[None]:
    cluster("down")
    yield
    cluster("down")


@pytest.mark.timeout(900)  # four creations of a cluster
def test_up_killed_at_three_random_moments_then_run_again_succeeds_and_down_leaves_nothing(
    scratch: None,
) -> None:
    before = machine()
    moments = [
        ("", random.uniform(0.2, 2)),
        ("create 1 nodes", random.uniform(0.2, 8)),
        ("wait until every node", random.uniform(0, 1.5)),
    ]
    said = [up_killed(words, seconds) for words, seconds in moments]
    words = cluster("up")
    assert "clear what is left" in words, (moments, said, words)
    nodes = cluster("status")
    assert "exo-scratch-control-plane" in nodes
    assert "is up" in cluster("up"), "a second up finds nothing to do"
    cluster("down")
    left = [line for line in machine() if line not in before]
    gone = [line for line in before if line not in machine()]
    assert (left, gone) == ([], [])


def test_a_node_that_is_not_ours_is_refused(scratch: None) -> None:
    done = subprocess.run(
        [str(CLUSTER_DIR / "cluster"), "kill-node", "exo-worker2"],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no such node: exo-worker2" in done.stderr
