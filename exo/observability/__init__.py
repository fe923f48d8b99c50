"""Logs and metrics of the lifecycle. Subscribes to `exo.lifecycle`'s events and imports nothing
else of `exo`.
"""
