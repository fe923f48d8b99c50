"""Names and types that the converted files and their readers agree on. Imports little, so a start
with converted files stays small.
"""

from __future__ import annotations

from typing import Final

import numpy as np

MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
EMBEDDING_FILE: Final = "embedding.bin"
# Domain of the operators that ONNX Runtime adds.
CONTRIB: Final = "com.microsoft"
# The type of keys and values.
KV_DTYPE: Final = np.float32
