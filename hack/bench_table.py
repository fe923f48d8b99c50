"""Print the ratios of `make bench` as a table. Each line of stdin is one program's last line: name,
figures, ratios.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable


def rows(lines: Iterable[str]) -> list[tuple[str, str, str]]:
    """(program, ratio, value) of every ratio; a line that is not a result is named as such."""
    found = []
    for line in lines:
        try:
            result = json.loads(line)
            ratios = dict(result["ratios"])
            name = str(result["name"])
        except (ValueError, KeyError, TypeError):
            found.append(("?", "not a result", line.strip()[:60]))
            continue
        found.extend((name, ratio, _number(value)) for ratio, value in ratios.items())
    return found


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, int | float) else str(value)


def main() -> None:
    table = rows(sys.stdin)
    widths = [max((len(row[column]) for row in table), default=0) for column in (0, 1)]
    for name, ratio, value in table:
        sys.stdout.write(f"  {name:<{widths[0]}}  {ratio:<{widths[1]}}  {value}\n")


if __name__ == "__main__":
    main()
