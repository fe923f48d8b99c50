"""The machinery behind `AsyncResource`: hooks, single flights, health checks, events. Use
`exo.lifecycle` instead.
"""
