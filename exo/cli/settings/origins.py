"""Where a setting's value came from: flag, environment or config file. Errors name that origin.

Knows how the command line's library records origins, and nothing of what a setting does.
"""

from __future__ import annotations

import os
from typing import Any

import typer
from typer.core import TyperCommand

from exo.cli.failures import USAGE, Failure
from exo.cli.settings.options import BY_KEY
from exo.cli.settings.setting import Setting
from exo.contract import env_name


class SettingsCommand(TyperCommand):
    """A command that names the variable or the config file that a wrong value came from. typer
    itself reports wrong flags.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            raise _explained(ctx, error) from None


def _explained(ctx: Any, error: typer.BadParameter) -> Exception:
    key = getattr(error.param, "name", None) or ""
    source = source_of(ctx, key)
    if key == "config":
        where = {"COMMANDLINE": "--config: ", "ENVIRONMENT": f"{env_name('config')}: "}.get(
            source, ""
        )
        return Failure(where + error.message, USAGE)
    if key in BY_KEY and source in ("ENVIRONMENT", "DEFAULT_MAP"):
        setting = BY_KEY[key]
        value = (
            os.environ[env_name(setting.name)] if source == "ENVIRONMENT" else ctx.default_map[key]
        )
        return Failure(f"{origin(ctx, setting)}: {setting.wrong(value)}", USAGE)
    return error


def source_of(ctx: Any, key: str) -> str:
    """COMMANDLINE, ENVIRONMENT, DEFAULT_MAP (the config file) or DEFAULT; "" for no parameter of
    the command.
    """
    return getattr(ctx.get_parameter_source(key), "name", "")


def origin(ctx: Any, setting: Setting) -> str:
    """`--api-port`, `EXO_API_PORT` or `node.toml: api-port`; the flag where nothing was set."""
    source = source_of(ctx, setting.key)
    if source == "ENVIRONMENT":
        return env_name(setting.name)
    return (
        f"{ctx.params['config']}: {setting.name}"
        if source == "DEFAULT_MAP"
        else f"--{setting.name}"
    )


def origin_or_default(ctx: Any, setting: Setting) -> str:
    return "default" if source_of(ctx, setting.key) in ("", "DEFAULT") else origin(ctx, setting)


def with_origin(failure: Failure, ctx: Any) -> Failure:
    """`--layers: …` becomes `EXO_LAYERS: …` where that is what set it."""
    flag, colon, rest = str(failure).partition(": ")
    setting = BY_KEY.get(flag.removeprefix("--").replace("-", "_"))
    if not colon or not flag.startswith("--") or setting is None:
        return failure
    return Failure(f"{origin(ctx, setting)}: {rest}", failure.code)
