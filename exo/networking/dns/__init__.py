"""Discovery by a DNS name with one record per peer: a headless Service in Kubernetes."""
