"""exo_operator: turns ExoNode and ExoCluster resources into pods. See operator/README.md for the
odd folder.
"""
