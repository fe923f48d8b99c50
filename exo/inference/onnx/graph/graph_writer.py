"""`GraphWriter`: an ONNX graph under construction; weights go straight to a file next to it. Knows
no model.

Weights never gather in memory: each is written when it is added, so that the peak is one matrix.
ONNX Runtime maps the file, and drops the mapping of what it has repacked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from exo.inference.arrays import Array
from exo.inference.onnx.graph.layout import CONTRIB, MODEL_FILE, WEIGHTS_FILE

OPSET: Final = 21
IR_VERSION: Final = 10
# Tensors up to this many bytes are in the graph itself (shapes, norms).
INLINE_LIMIT: Final = 1024
# One page, so that a mapping of one tensor shares no page with the next.
ALIGNMENT: Final = 4096

_TYPES: Final = {
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "int32": TensorProto.INT32,
}


class GraphWriter:
    """Collects nodes and writes weights to `folder / weights.bin`; `save` writes `folder /
    model.onnx`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO = (folder / WEIGHTS_FILE).open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._early: list[onnx.NodeProto] = []
        self._written: dict[bytes, int] = {}
        self._initializers: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: str, shape: list[str | int]) -> str:
        self._inputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))
        return name

    def output(self, name: str, dtype: str, shape: list[str | int]) -> None:
        self._outputs.append(helper.make_tensor_value_info(name, _TYPES[dtype], shape))

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; the same name again means the same tensor."""
        if name in self._initializers:
            return name
        value = np.ascontiguousarray(value)
        tensor = TensorProto(name=name, data_type=_TYPES[str(value.dtype)], dims=value.shape)
        if value.nbytes <= INLINE_LIMIT:
            tensor.raw_data = value.tobytes()
        else:
            self._write(tensor, value)
        self._initializers[name] = tensor
        return name

    def _write(self, tensor: TensorProto, value: Array) -> None:
        # The same bytes twice (a head that is the embedding) are written once.
        digest = hashlib.blake2b(value.data, digest_size=16).digest()
        if digest not in self._written:
            start = self._file.tell()
            start += -start % ALIGNMENT
            self._file.seek(start)
            self._file.write(value.data)
            self._written[digest] = start
        self._refer(tensor, self._written[digest], value.nbytes)

    @staticmethod
    def _refer(tensor: TensorProto, start: int, size: int) -> None:
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (
            ("location", WEIGHTS_FILE),
            ("offset", str(start)),
            ("length", str(size)),
        ):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text

    def node(
        self,
        kind: str,
        inputs: list[str],
        outputs: list[str] | str,
        *,
        domain: str = "",
        early: bool = False,
        **attributes: Any,
    ) -> str:
        """Add a node; returns its first output.

        ONNX Runtime repacks weights node by node in file order, and holds a matrix twice for a
        moment. With the largest `early`, that moment is when the others are not in memory yet.
        """
        outputs = [outputs] if isinstance(outputs, str) else outputs
        nodes = self._early if early else self._nodes
        nodes.append(helper.make_node(kind, inputs, outputs, domain=domain, **attributes))
        return outputs[0]

    def save(self) -> None:
        self._file.close()
        nodes, initializers = [*self._early, *self._nodes], list(self._initializers.values())
        graph = helper.make_graph(nodes, "shard", self._inputs, self._outputs, initializers)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="exo"
        )
        (self._folder / MODEL_FILE).write_bytes(model.SerializeToString())

    def close(self) -> None:
        """Close the weights file; for a build that was abandoned."""
        self._file.close()
