"""What runs the layers: the engine interface, what implementations share, and the pool of several
shards.
"""
