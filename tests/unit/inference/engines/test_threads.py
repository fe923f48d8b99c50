"""The threads of matrix products follow the container's quota, and never exceed what the user has
set.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from golden_data import DATA

from exo.inference.engines.factory import create_engine
from exo.inference.engines.options import EngineOptions
from exo.inference.shard import Shard

CODE = """
import ctypes, pathlib, sys, numpy as np
from exo.inference.numpy.threads import limit_threads
done = limit_threads(int(sys.argv[1]))
(path,) = (pathlib.Path(np.__file__).parent.parent / "numpy.libs").glob("*scipy_openblas*")
print(done, ctypes.CDLL(str(path)).scipy_openblas_get_num_threads64_())
"""


def run(threads: int, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(threads)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin", **environment},
    )
    return done.stdout.strip()


def test_products_take_no_more_threads_than_the_container_may_use() -> None:
    assert run(1) == "True 1"


def test_a_user_who_has_set_fewer_keeps_them() -> None:
    assert run(8, OPENBLAS_NUM_THREADS="1") == "True 1"


async def test_an_environment_that_has_decided_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr("exo.inference.numpy.engine.limit_threads", asked.append)
    path = DATA / "tiny-gguf" / "tiny-llama.F32.gguf"
    for options in (EngineOptions(threads=3), EngineOptions(threads=5, keep_blas_threads=True)):
        async with create_engine("numpy", options) as engine:
            await engine.load_checkpoint(Shard.whole("tiny", 4), path)
    assert asked == [3]
