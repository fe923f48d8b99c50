"""The console that tables of the commands go to: as wide as the terminal, or as its lines where it
is none.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console

# Nothing that a command prints is longer; what reads a pipe should not get names cut at 80 columns.
UNBOUNDED = 1000


def wide_console() -> Console:
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if known else UNBOUNDED)
