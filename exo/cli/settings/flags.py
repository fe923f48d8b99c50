"""A typer command with one flag for each setting of the options table."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from exo.cli.settings.config_file import default_config, read_config
from exo.cli.settings.options import PANELS
from exo.cli.settings.setting import Setting
from exo.contract import env_name

CONFIG_HELP = "A TOML file with settings by the names of these flags, like `api-port = 52415`."
Command = Callable[[typer.Context, dict[str, Any]], None]


def with_settings(command: Command) -> Callable[..., None]:
    """`command` with `--config` and a flag for each setting; it gets their values by key."""
    config = Annotated[
        Path | None,
        typer.Option(
            "--config",
            envvar=env_name("config"),
            is_eager=True,
            callback=_load_config,
            help=CONFIG_HELP,
        ),
    ]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter("config", keyword, default=None, annotation=config),
        *(_parameter(setting, panel) for panel, settings in PANELS.items() for setting in settings),
    ]

    def run(ctx: typer.Context, **values: Any) -> None:
        values.pop("config", None)
        command(ctx, values)

    run.__doc__ = command.__doc__
    # What typer reads.
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _load_config(ctx: typer.Context, value: Path | None) -> Path | None:
    path = value or default_config()
    if path is not None:
        ctx.default_map = read_config(path)
    return path


def _parameter(setting: Setting, panel: str) -> inspect.Parameter:
    flag = f"--{setting.name}" + (f"/--no-{setting.name}" if setting.kind is bool else "")
    shown = setting.shown if setting.shown is not None else setting.default not in (None, "", False)
    option = typer.Option(
        flag,
        envvar=env_name(setting.name),
        show_envvar=False,
        help=setting.help,
        show_default=shown,
        min=setting.least,
        max=setting.most,
        metavar=setting.metavar,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        setting.key,
        inspect.Parameter.KEYWORD_ONLY,
        default=setting.default,
        annotation=Annotated[setting.kind, option],
    )
