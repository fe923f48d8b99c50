"""Writes generated files, or checks that the committed ones are fresh."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def write(files: Mapping[Path, str], *, check: bool) -> int:
    """Write the files that are stale; with `check`, only name them. Returns the exit code."""
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    if check:
        if stale:
            sys.stderr.write(f"stale: {', '.join(map(str, stale))}; run `make generate`\n")
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0


def main(files: Mapping[Path, str], description: str | None, argv: Sequence[str]) -> int:
    """The command line of a generator: nothing, or `--check`."""
    parser = argparse.ArgumentParser(description=description)
    add_check(parser)
    return write(files, check=parser.parse_args(argv).check)


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the flag `--check`."""
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 if a file is stale"
    )
