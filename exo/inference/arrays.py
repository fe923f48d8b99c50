"""`Array`: how signatures name a numpy array. Shapes and types are in docstrings and comments."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
