"""The custom resources: spec, status and conditions as typed models, names, and what is generated
from them. Pure, except for writing generated files.
"""
