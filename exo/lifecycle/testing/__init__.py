"""Tools for the tests of resources: the conformance suite, leak detection, interrupted hooks."""

from exo.lifecycle.testing.conformance import ConformanceError, check_resource

__all__ = ["ConformanceError", "check_resource"]
