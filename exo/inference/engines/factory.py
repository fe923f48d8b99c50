"""`create_engine`: an engine by name. `auto`: onnx where onnxruntime is installed, and numpy for
the models that it cannot run.

A new engine needs its runner and class, a line in `CLASSES` here, and its name in
`exo.contract.EngineName`.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, Final

from exo.contract import ENGINES
from exo.inference.engines.engine import Engine
from exo.inference.engines.engine_pool import EnginePool
from exo.inference.engines.fallback import FallbackRunner
from exo.inference.engines.options import EngineOptions
from exo.inference.engines.runner import ModelRunner
from exo.inference.errors import InvalidRequest

DEFAULTS: Final = EngineOptions()


def create_pool(name: str = "auto", options: EngineOptions = DEFAULTS) -> EnginePool:
    """Engines of that name, one for each shard held. Raises as `create_engine` does."""
    create_engine(name, options)  # a wrong name is an error now, not at the first load
    return EnginePool(
        functools.partial(create_engine, name, options, resource_type=EnginePool.PART_TYPE)
    )


def create_engine(name: str = "auto", options: EngineOptions = DEFAULTS, **more: Any) -> Engine:
    """`more`: what the engine's constructor takes besides, such as `resource_id`.

    Raises `InvalidRequest` for a name that is not in `ENGINES`.
    """
    if name != "auto":
        chosen = {each.name: getattr(options, each.name) for each in fields(options)}
        return engine_class(name)(**(chosen | more))
    if not has_onnxruntime():
        return create_engine("numpy", options, **more)
    best_first = ("onnx", "numpy")
    return Engine(
        FallbackRunner({each: functools.partial(_runner, each, options) for each in best_first}),
        **more,
    )


def engine_class(name: str) -> type[Engine]:
    """Imported when it is first asked for. Raises `InvalidRequest`; `auto` has none of its own."""
    if name not in CLASSES:
        raise InvalidRequest(
            f"engine {name!r} is unknown; there are: {', '.join(ENGINES)}", field="engine"
        )
    return CLASSES[name]()


def has_onnxruntime() -> bool:
    return importlib.util.find_spec("onnxruntime") is not None


def _runner(name: str, options: EngineOptions) -> ModelRunner:
    return CLASSES[name]().RUNNER(options)


def _numpy() -> type[Engine]:
    from exo.inference.numpy.engine import NumpyEngine

    return NumpyEngine


def _onnx() -> type[Engine]:
    if not has_onnxruntime():
        raise InvalidRequest(
            "engine 'onnx' needs onnxruntime, which is not installed", field="engine"
        )
    from exo.inference.onnx.engine import OnnxEngine

    return OnnxEngine


def _dummy() -> type[Engine]:
    from exo.inference.engines.dummy import DummyEngine

    return DummyEngine


CLASSES: Final[Mapping[str, Callable[[], type[Engine]]]] = {
    "onnx": _onnx,
    "numpy": _numpy,
    "dummy": _dummy,
}
