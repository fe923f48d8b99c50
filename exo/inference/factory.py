"""`create_engine`: an engine by name. `auto` takes onnx where onnxruntime is there, else numpy."""

from __future__ import annotations

import importlib.util
from typing import Any, Final

from exo.inference.errors import InvalidRequest
from exo.inference.inference_engine import InferenceEngine

ENGINES: Final = ("auto", "onnx", "numpy", "dummy")


def create_engine(name: str = "auto", **options: Any) -> InferenceEngine:
    """`options` go to the engine (`kv_budget`, ...). Raises `InvalidRequest` for a name that is not in `ENGINES`."""
    if name == "auto":
        name = "onnx" if _has_onnx() else "numpy"
    if name == "numpy":
        from exo.inference.numpy.engine import NumpyEngine

        return NumpyEngine(**options)
    if name == "onnx":
        from exo.inference.onnx.engine import OnnxEngine

        return OnnxEngine(**options)
    if name == "dummy":
        from exo.inference.dummy import DummyEngine

        return DummyEngine(**options)
    raise InvalidRequest(f"engine {name!r} is unknown; there are: {', '.join(ENGINES)}", field="engine")


def _has_onnx() -> bool:
    return all(importlib.util.find_spec(m) is not None for m in ("onnxruntime", "exo.inference.onnx.engine"))
