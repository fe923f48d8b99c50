"""Settings of a node: one table of options, and values for them from flags, environment variables
and the config file.
"""
