"""The machinery behind `AsyncResource`. Use `exo.lifecycle` instead.

It sees a resource only as the `Subject` of `subject.py`, so that nothing here imports the class.
"""
