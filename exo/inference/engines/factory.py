"""`create_engine`: an engine by name. `auto`: onnx where onnxruntime is installed, and numpy for
the models that it cannot run.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final

from exo.contract import ENGINES
from exo.inference.engines.checkpoint_engine import CheckpointEngine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.engines.options import EngineOptions
from exo.inference.errors import InvalidRequest

DEFAULTS: Final = EngineOptions()


def create_pool(name: str = "auto", options: EngineOptions = DEFAULTS) -> EnginePool:
    """Engines of that name, one for each shard held. Raises as `create_engine` does."""
    create_engine(name, options)  # a wrong name is an error now, not at the first load
    return EnginePool(
        functools.partial(create_engine, name, options, resource_type=EnginePool.PART_TYPE)
    )


def create_engine(
    name: str = "auto", options: EngineOptions = DEFAULTS, **more: Any
) -> CheckpointEngine:
    """`more`: what the engine's constructor takes besides, such as `resource_id`.

    Raises `InvalidRequest` for a name that is not in `ENGINES`.
    """
    makers: dict[str, Callable[..., CheckpointEngine]] = {
        "onnx": _onnx,
        "numpy": _numpy,
        "dummy": _dummy,
    }
    if name in makers:
        return makers[name](options, **more)
    if name != "auto":
        raise InvalidRequest(
            f"engine {name!r} is unknown; there are: {', '.join(ENGINES)}", field="engine"
        )
    if not has_onnxruntime():
        return _numpy(options, **more)
    from exo.inference.engines.fallback import FallbackEngine

    return FallbackEngine(
        {"onnx": lambda: _onnx(options), "numpy": lambda: _numpy(options)}, **more
    )


def has_onnxruntime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def _numpy(options: EngineOptions, **more: Any) -> CheckpointEngine:
    from exo.inference.numpy.engine import NumpyEngine

    return NumpyEngine(**_chosen(options) | more)


def _onnx(options: EngineOptions, **more: Any) -> CheckpointEngine:
    if not has_onnxruntime():
        raise InvalidRequest(
            "engine 'onnx' needs onnxruntime, which is not installed", field="engine"
        )
    from exo.inference.onnx.engine import OnnxEngine

    return OnnxEngine(**_chosen(options) | more)


def _dummy(options: EngineOptions, **more: Any) -> CheckpointEngine:
    from exo.inference.engines.dummy import DummyEngine

    return DummyEngine(**more)


def _chosen(options: EngineOptions) -> dict[str, Any]:
    return {each.name: getattr(options, each.name) for each in fields(options)}
