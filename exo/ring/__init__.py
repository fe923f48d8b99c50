"""The control plane: which nodes are members, which plan is in force, and which layers this node
holds for it. Messages reach the data plane (`exo.pipeline`) through its router.
"""
