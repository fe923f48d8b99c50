"""exo: distributed LLM inference whose every part is an `AsyncResource`.

Nothing is imported here: a program that needs only `exo.contract` (the operator) must not pay for
numpy or grpc.
"""

__version__ = "0.1.0"
