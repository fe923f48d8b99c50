"""Turn `pip config list` (stdin) into a pip.conf (stdout) that holds the package index settings and
nothing else.

What `pip config list` prints are the settings of all of pip's files and of its environment.
Certificates travel apart, and a local folder of wheels means nothing inside an image.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable

CARRIED = (
    "index-url",
    "extra-index-url",
    "trusted-host",
    "timeout",
    "default-timeout",
    "retries",
    "proxy",
    "no-index",
)


def settings(lines: Iterable[str]) -> dict[str, str]:
    """Of each carried setting the value that pip would use: the environment's over a file's."""
    found: dict[str, tuple[bool, str]] = {}
    for line in lines:
        key, equals, value = line.strip().partition("=")
        section, _, name = key.rpartition(".")
        if not equals or name not in CARRIED:
            continue
        from_environment = section.startswith(":env:")
        if from_environment or not found.get(name, (False, ""))[0]:
            found[name] = (from_environment, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def pip_conf(found: dict[str, str]) -> str:
    """The text of a pip.conf; a value of several lines stays one setting."""
    lines = ["[global]"]
    for name, value in sorted(found.items()):
        lines.append(f"{name.removeprefix('default-')} = " + "\n    ".join(value.split()))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(pip_conf(settings(sys.stdin)))
