"""The Kubernetes API: kinds, objects, actions, ownership, client, cache, leader election. Knows no
rules of ExoNodes and ExoClusters.
"""
