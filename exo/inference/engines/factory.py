"""`create_engine`: an engine by name. `auto`: onnx where onnxruntime is, numpy where that cannot
run the model.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, Final

from exo.inference.engines.checkpoint_engine import CheckpointEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.errors import InvalidRequest

ENGINES: Final = ("auto", "onnx", "numpy", "dummy")


def create_pool(name: str = "auto") -> EnginePool:
    """Engines of that name, one per shard held. Raises as `create_engine` does."""
    create_engine(name)  # a wrong name is told now, not at the first load
    return EnginePool(functools.partial(create_engine, name, resource_type=EnginePool.PART_TYPE))


def create_engine(
    name: str = "auto", *, resource_type: str | None = None, **options: Any
) -> CheckpointEngine:
    """`options` go to the engine (`kv_budget`, ...). Raises `InvalidRequest` for a name that is not
    in `ENGINES`.
    """
    life = {} if resource_type is None else {"resource_type": resource_type}
    makers: dict[str, Callable[..., CheckpointEngine]] = {
        "onnx": _onnx,
        "numpy": _numpy,
        "dummy": _dummy,
    }
    if name in makers:
        return makers[name](**life, **options)
    if name != "auto":
        raise InvalidRequest(
            f"engine {name!r} is unknown; there are: {', '.join(ENGINES)}", field="engine"
        )
    if not has_onnxruntime():
        return _numpy(**life, **options)
    from exo.inference.engines.fallback import FallbackEngine

    return FallbackEngine(
        {"onnx": lambda: _onnx(**options), "numpy": lambda: _numpy(**options)}, **life
    )


def has_onnxruntime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def _numpy(**options: Any) -> CheckpointEngine:
    from exo.inference.numpy.engine import NumpyEngine

    return NumpyEngine(**options)


def _onnx(**options: Any) -> CheckpointEngine:
    if not has_onnxruntime():
        raise InvalidRequest(
            "engine 'onnx' needs onnxruntime, which is not installed", field="engine"
        )
    from exo.inference.onnx.engine import OnnxEngine

    return OnnxEngine(**options)


def _dummy(**options: Any) -> CheckpointEngine:
    from exo.inference.engines.dummy import DummyEngine

    return DummyEngine(**options)
