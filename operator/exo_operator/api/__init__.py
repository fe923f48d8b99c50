"""The custom resources: their spec and status as typed models, names, and the generated CRDs.
Pure.
"""
