"""The console for tables: as wide as the terminal; without one, as wide as the longest line."""

from __future__ import annotations

import os
import sys

from rich.console import Console

# Longer than any line that a command prints: in a pipe, names must not be cut at 80 columns.
UNBOUNDED = 1000


def wide_console() -> Console:
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else UNBOUNDED)
