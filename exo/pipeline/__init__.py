"""The data plane: one request at its entry node, its sequence on each stage, forward passes. Knows
no plan.
"""
