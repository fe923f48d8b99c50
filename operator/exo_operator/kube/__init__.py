"""The Kubernetes API: client, cache of objects, leader election. Knows no ExoNode rules."""
