"""Stored tensor types to float32. Pure; the block formats are those of ggml, through the `gguf`
package.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from exo.inference.arrays import Array
from exo.inference.checkpoints.tensors import RawTensor

# Types stored value by value; all others are ggml block formats.
PLAIN: Final[dict[str, str]] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
BLOCKED: Final = (
    "Q8_0",
    "Q4_0",
    "Q4_1",
    "Q5_0",
    "Q5_1",
    "Q2_K",
    "Q3_K",
    "Q4_K",
    "Q5_K",
    "Q6_K",
    "IQ4_NL",
    "IQ4_XS",
)
SUPPORTED: Final = (*PLAIN, "BF16", *BLOCKED)


def block_layout(dtype: str) -> tuple[int, int]:
    """(values per block, bytes per block) of a stored type. Raises `ValueError` for an unsupported
    type.
    """
    if dtype in PLAIN:
        return 1, np.dtype(PLAIN[dtype]).itemsize
    if dtype == "BF16":
        return 1, 2
    if dtype not in BLOCKED:
        raise ValueError(f"type {dtype} is not supported; supported: {', '.join(SUPPORTED)}")
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    values, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[dtype]]
    return int(values), int(n_bytes)


def to_float32(raw: RawTensor) -> Array:
    """float32 array of `raw.shape`, never a view of `raw.data`. Raises `ValueError` for an
    unsupported type.
    """
    if raw.dtype in PLAIN:
        with np.errstate(all="ignore"):
            values = raw.data.view(PLAIN[raw.dtype]).astype(np.float32)
    elif raw.dtype == "BF16":
        # A bfloat16 is the upper half of a float32.
        values = (raw.data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif raw.dtype in BLOCKED:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        # A damaged scale may be infinite; the caller checks the values.
        with np.errstate(all="ignore"):
            values = dequantize(raw.data, GGMLQuantizationType[raw.dtype])
    else:
        raise ValueError(f"type {raw.dtype} is not supported; supported: {', '.join(SUPPORTED)}")
    return np.ascontiguousarray(values, dtype=np.float32).reshape(raw.shape)
