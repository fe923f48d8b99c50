"""`exo config`: the settings in force, in the form of a config file, with their origins."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from exo.cli.settings.environment import misspelt
from exo.cli.settings.setting import Setting


def show(values: Mapping[str, tuple[Any, str]], settings: Mapping[str, Setting]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    hints = [
        f"# {unknown} is not a setting; did you mean {meant}?"
        for unknown, meant in misspelt(os.environ)
    ]
    for line in [*lines(values, settings), *hints]:
        head, mark, comment = line.partition("  # ")
        console.print(Text.assemble(head, (mark + comment, "dim")))


def lines(values: Mapping[str, tuple[Any, str]], settings: Mapping[str, Setting]) -> list[str]:
    """TOML that `--config` accepts; what has no value, or is secret, is a comment. `values`: with
    their origins.
    """
    out = []
    for key, (value, origin) in values.items():
        setting = settings[key]
        if value in (None, ""):
            out.append(f"# {setting.name} =  # {setting.shown or 'not set'}")
        elif setting.secret:
            out.append(f"# {setting.name} = (secret)  # {origin}")
        else:
            out.append(f"{setting.name} = {_toml(value)}  # {origin}")
    return out


def _toml(value: Any) -> str:
    """TOML's basic strings are JSON's, for the values that settings have."""
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)
