"""The threads of matrix products follow the container's quota unless the environment has
decided.
"""

from __future__ import annotations

import subprocess
import sys

CODE = """
import ctypes, pathlib, numpy as np
from exo.inference.numpy.threads import limit_threads
done = limit_threads(1)
(path,) = (pathlib.Path(np.__file__).parent.parent / "numpy.libs").glob("*scipy_openblas*")
print(done, ctypes.CDLL(str(path)).scipy_openblas_get_num_threads64_())
"""


def run(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin", **environment},
    )
    return done.stdout.strip()


def test_products_take_no_more_threads_than_the_container_may_use() -> None:
    assert run() == "True 1"


def test_an_environment_that_has_decided_is_left_alone() -> None:
    assert run(OPENBLAS_NUM_THREADS="2").startswith("False")
