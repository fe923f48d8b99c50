"""The data plane: a sequence at its entry node, on each stage, and in forward passes. Knows no
membership; a plan is something it is given.
"""
