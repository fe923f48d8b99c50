"""The config file: TOML whose keys are the names of the settings."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from exo.cli.settings.options import BY_KEY, SETTINGS


def default_config() -> Path | None:
    """`exo/config.toml` in the user's configuration folder, if it exists."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(base).expanduser() / "exo" / "config.toml"
    return path if path.is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """The file's settings by key. Raises `typer.BadParameter` that names the file and the fault."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: not TOML: {error}") from None
    return dict(_checked(path, name, value) for name, value in content.items())


def _checked(path: Path, name: str, value: Any) -> tuple[str, Any]:
    key = name.replace("-", "_")
    if key not in BY_KEY:
        known = ", ".join(setting.name for setting in SETTINGS)
        raise typer.BadParameter(f"{path}: unknown setting {name!r}; the settings are: {known}")
    if isinstance(value, dict | list):
        kind = type(value).__name__
        raise typer.BadParameter(f"{path}: {name}: expected one value, got a {kind}")
    if not BY_KEY[key].accepts(value):
        raise typer.BadParameter(f"{path}: {name}: {BY_KEY[key].wrong(value)}")
    return key, value
