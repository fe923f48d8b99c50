"""Settings of a node: one table of options; values from flags, environment variables and the
configuration file.
"""
