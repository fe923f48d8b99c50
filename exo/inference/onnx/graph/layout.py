"""Names that the converted files and their readers agree on. Imports nothing, so a warm start stays
small.
"""

from __future__ import annotations

from typing import Final

MODEL_FILE: Final = "model.onnx"
WEIGHTS_FILE: Final = "weights.bin"
EMBEDDING_FILE: Final = "embedding.bin"
# Domain of the operators that ONNX Runtime adds.
CONTRIB: Final = "com.microsoft"
