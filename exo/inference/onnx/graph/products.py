"""`Products`: inputs times weight matrices, as nodes of a graph. Knows no model.

Inputs are (batch, length, K). Packed matrices are `MatMulNBits`; the part of affine blocks that
this operator does not know is added as `offset_columns` says. Activations are int8 per block of 32,
or float32 where `careful` is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.onnx.graph.formats import BLOCK, Dense, Matrix, Packed
from exo.inference.onnx.graph.layout import CONTRIB
from exo.inference.onnx.graph.offset_columns import DIGITS, Folded, fold

if TYPE_CHECKING:  # it imports the onnx package, which a warm start does not need
    from exo.inference.onnx.graph.graph_writer import GraphWriter

# Writes the product of an input with a packed matrix: (input's name, matrix, output's name).
PackedProduct = Callable[[str, Packed | Folded, str], str]

# MatMulNBits: 4 takes the int8 kernels (activations are quantised per block of 32), 1 the float32
# ones.
INT8_ACTIVATIONS: Final = 4
FLOAT_ACTIVATIONS: Final = 1
INT64: Final = 7  # ONNX's number of the type


class Products:
    """Adds nodes to `writer`, from `begin` on."""

    def __init__(self, writer: GraphWriter) -> None:
        self._g = writer
        # By width: zeros (batch, length, width), once for all layers.
        self._zeros: dict[int, str] = {}

    def begin(self, hidden: str) -> None:
        """hidden: an input (batch, length, hidden).
        prompts_and_steps: how many rows bring several tokens each, and how many bring one. One of
            the two is 0.
        """
        g = self._g
        batch = g.node("Shape", [hidden], "n_batch", end=1)
        length = g.node("Shape", [hidden], "n_length", start=1, end=2)
        g.node("Concat", [batch, length], "batch_and_length", axis=0)
        longer = g.node("Greater", [length, g.constant("one", np.array([1]))], "is_prompt")
        prompts = g.node(
            "Mul", [batch, g.node("Cast", [longer], "is_prompt_int", to=INT64)], "n_prompts"
        )
        g.node(
            "Concat",
            [prompts, g.node("Sub", [batch, prompts], "n_steps")],
            "prompts_and_steps",
            axis=0,
        )

    def linear(self, x: str, matrix: Matrix, bias: Array | None, out: str) -> str:
        """x times the transposed matrix plus bias."""
        if isinstance(matrix, Dense):
            return self._dense(x, matrix, bias, out)
        return self._affine(
            x, matrix, lambda x, packed, out: self._packed(x, packed, bias, out, out), out
        )

    def careful(self, x: str, matrix: Matrix, bias: Array | None, out: str) -> str:
        """`linear` with float activations where a prompt is read: int8 loses most at the spikes of
        attention sinks.

        Sinks are tokens of the prompt, so steps gain nothing from it (decision 0005); and int8
        kernels give a row the same bits whatever other rows are in the batch.
        """
        if isinstance(matrix, Dense):
            return self._dense(x, matrix, bias, out)

        def either(x: str, packed: Packed | Folded, out: str) -> str:
            # A product of no rows costs less than an `If`.
            g, parts = self._g, [f"{out}.prompts", f"{out}.steps"]
            g.node("Split", [x, "prompts_and_steps"], [f"{part}.in" for part in parts], axis=0)
            for part, accuracy in zip(parts, (FLOAT_ACTIVATIONS, INT8_ACTIVATIONS), strict=True):
                self._packed(f"{part}.in", packed, bias, part, out, accuracy=accuracy)
            return g.node("Concat", parts, out, axis=0)

        return self._affine(x, matrix, either, out)

    def head(self, x: str, matrix: Matrix, bias: Array | None, out: str) -> str:
        """`linear` for the largest matrix, which is repacked before all others; x may have any
        length.
        """
        if isinstance(matrix, Dense):
            return self._dense(x, matrix, bias, out, early=True)

        def product(x: str, packed: Packed | Folded, out: str) -> str:
            return self._packed(x, packed, bias, out, out, early=True)

        return (
            product(x, matrix, out)
            if matrix.offsets is None
            else self._with_offsets_apart(x, matrix, product, out)
        )

    def _dense(
        self, x: str, matrix: Dense, bias: Array | None, out: str, *, early: bool = False
    ) -> str:
        g = self._g
        weight = g.constant(f"{out}.weight", matrix.values.T)
        if bias is None:
            return g.node("MatMul", [x, weight], out, early=early)
        product = g.node("MatMul", [x, weight], f"{out}.product", early=early)
        return g.node("Add", [product, g.constant(f"{out}.bias", bias)], out)

    def _affine(self, x: str, matrix: Packed, product: PackedProduct, out: str) -> str:
        """`product` with the matrix's offsets, if it has any: as columns, or otherwise as a
        separate product.
        """
        if matrix.offsets is None:
            return product(x, matrix, out)
        folded = fold(matrix)
        if folded is None:
            return self._with_offsets_apart(x, matrix, product, out)
        sums = self._block_sums(x, matrix.k, out)
        between = [self._zeros_of(folded.pad)] if folded.pad else []
        parts = [x, sums, *[*between, sums] * (DIGITS - 1)]
        return product(self._g.node("Concat", parts, f"{out}.in", axis=-1), folded, out)

    def _with_offsets_apart(self, x: str, matrix: Packed, product: PackedProduct, out: str) -> str:
        assert matrix.offsets is not None
        g = self._g
        offsets = g.constant(f"{out}.offsets", matrix.offsets.T)
        rest = g.node("MatMul", [self._block_sums(x, matrix.k, out), offsets], f"{out}.rest")
        return g.node("Add", [product(x, matrix, f"{out}.q"), rest], out)

    def _block_sums(self, x: str, k: int, out: str) -> str:
        """(batch, length, blocks) of (batch, length, k).

        Not a product with a constant: ONNX Runtime would keep (and read) a repacked copy for every
        node.
        """
        g = self._g
        blocks = g.constant(f"blocks_{k}", np.array([0, 0, k // BLOCK, BLOCK]))
        in_blocks = g.node("Reshape", [x, blocks], f"{out}.blocks")
        return g.node(
            "ReduceSum",
            [in_blocks, g.constant("last_axis", np.array([-1]))],
            f"{out}.sums",
            keepdims=0,
        )

    def _zeros_of(self, width: int) -> str:
        if width not in self._zeros:
            g, name = self._g, f"zeros_{width}"
            shape = ["batch_and_length", g.constant(f"{name}.width", np.array([width]))]
            g.node("Concat", shape, f"{name}.shape", axis=0)
            self._zeros[width] = g.node("ConstantOfShape", [f"{name}.shape"], name)
        return self._zeros[width]

    def _packed(
        self,
        x: str,
        matrix: Packed | Folded,
        bias: Array | None,
        out: str,
        weights: str,
        *,
        early: bool = False,
        accuracy: int = INT8_ACTIVATIONS,
    ) -> str:
        """Without the offsets of a `Packed` matrix. weights: prefix of its constants' names."""
        g = self._g
        inputs = [
            x,
            g.constant(f"{weights}.codes", matrix.codes),
            g.constant(f"{weights}.scales", matrix.scales),
        ]
        zeros = (
            [g.constant(f"{weights}.zeros", matrix.zero_points)]
            if isinstance(matrix, Folded)
            else []
        )
        inputs += (
            zeros if bias is None else [*(zeros or [""]), "", g.constant(f"{weights}.bias", bias)]
        )
        block = matrix.block if isinstance(matrix, Packed) else BLOCK
        return g.node(
            "MatMulNBits",
            inputs,
            out,
            domain=CONTRIB,
            early=early,
            K=matrix.k,
            N=matrix.n,
            bits=matrix.bits,
            block_size=block,
            accuracy_level=accuracy,
        )
