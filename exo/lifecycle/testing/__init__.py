"""Test tools for resources: the conformance check, leak detection, interrupted hooks. For tests
only.
"""

from exo.lifecycle.testing.conformance import ConformanceError, check_resource

__all__ = ["ConformanceError", "check_resource"]
