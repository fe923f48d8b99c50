"""Former home of `exo.node`, `exo.ring` and `exo.pipeline`; keeps the path of `Node` for code
outside.
"""
