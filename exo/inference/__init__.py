"""Engines, checkpoints, tokenizers, sampling: from token ids to token ids. Knows no sockets and no
HTTP.
"""
