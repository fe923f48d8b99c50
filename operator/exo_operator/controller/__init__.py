"""Watches, queue, reconcile and its execution, metrics of the operator."""
