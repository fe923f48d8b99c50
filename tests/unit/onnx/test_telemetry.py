"""ONNX Runtime tells its maker nothing: it neither marks the machine nor looks for the address to
report to.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "first",
    ["exo.inference.onnx.engine", "exo.inference.onnx.run.session", "exo.cli.commands.doctor"],
)
def test_the_library_is_never_loaded_with_its_telemetry_on(first: str, tmp_path: Path) -> None:
    code = (
        f"import sys, {first} as first\nlist(getattr(first, 'onnx', list)())\nassert 'onnxruntime'"
        " in sys.modules"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, timeout=60, check=True)
    assert list(tmp_path.rglob("*")) == []  # its mark of the machine, and its queue of events
