"""What runs: watches, queue, reconcile, executor, and the operator's own metrics and health."""
