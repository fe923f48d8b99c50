"""The control plane: who is a member, which plan is in force, and which layers this node holds for
it.
"""
