"""Every setting of a node, once: flag, `EXO_…` variable, config file key, default and help come
from this table.

Precedence: flag, environment, config file, default. Imports nothing heavy: `exo --help` must be
    quick.
"""

from __future__ import annotations

import inspect
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer

from exo.contract import (
    API_PORT,
    DEFAULT_MODEL,
    DISCOVERY_PORT,
    GRPC_PORT,
    HEALTH_PORT,
    MODELS_DIR,
    env_name,
)

Engine = Literal["auto", "onnx", "numpy", "dummy"]
CONFIG_HELP = "A TOML file with settings by the names of these flags, like `api-port = 52415`."


@dataclass(frozen=True, slots=True)
class Setting:
    """`shown`: what help says of a default that is found at run time. `secret`: never printed."""

    name: str
    kind: Any
    default: Any
    help: str
    metavar: str | None = None
    shown: str | None = None
    secret: bool = False
    least: float | None = None
    most: float | None = None

    @property
    def key(self) -> str:
        return self.name.replace("-", "_")

    @property
    def plain_kind(self) -> Any:
        """Without the `| None`."""
        if get_origin(self.kind) is Literal:
            return self.kind
        return next((kind for kind in get_args(self.kind) if kind is not NoneType), self.kind)

    def wrong(self, value: Any) -> str:
        """What is expected, and what this is instead."""
        shown = (
            str(value).lower()
            if isinstance(value, bool)
            else repr(value)
            if isinstance(value, str)
            else value
        )
        return f"expected {self._expected()}" + ("" if self.secret else f", got {shown}")

    def _expected(self) -> str:
        kind = self.plain_kind
        if get_origin(kind) is Literal:
            return f"one of {', '.join(get_args(kind))}"
        if kind not in (int, float):
            return {bool: "true or false", Path: "a path in quotes"}.get(kind, "text in quotes")
        noun = "a whole number" if kind is int else "a number"
        if self.most is not None:
            return f"{noun} from {self.least:g} to {self.most:g}"
        return noun if self.least is None else f"{noun} of at least {self.least:g}"

    def takes(self, value: Any) -> bool:
        """Whether a config file's value is of a kind that makes sense; a string may still say
        nothing sensible.
        """
        if isinstance(value, bool):
            return self.plain_kind is bool
        return isinstance(value, str) or (
            isinstance(value, int | float) and self.plain_kind in (int, float)
        )


def _port(name: str, default: int, text: str) -> Setting:
    return Setting(name, int, default, text, "PORT", least=0, most=65535)


def _secret(name: str, text: str) -> Setting:
    return Setting(name, str, "", f"{text} Better set as {env_name(name)}.", "TEXT", secret=True)


# By the heading under which help shows them.
PANELS: Final = {
    "Model": (
        Setting(
            "model",
            str,
            DEFAULT_MODEL,
            "A bundled model's name, a GGUF file or folder, or hf:OWNER/REPO.",
            "MODEL",
        ),
        Setting(
            "engine",
            Engine,
            "auto",
            "What computes: auto takes onnx where it is installed, else numpy.",
        ),
        Setting(
            "context-length",
            int | None,
            None,
            "Longest prompt and answer.",
            "TOKENS",
            "the model's own",
            least=1,
        ),
        Setting(
            "models-dir",
            Path | None,
            None,
            "Where models lie by name.",
            "PATH",
            f"{MODELS_DIR} where it is there",
        ),
        Setting(
            "cache-dir", Path | None, None, "Where downloads are kept.", "PATH", "the user's cache"
        ),
        Setting(
            "hub-revision",
            str | None,
            None,
            "Branch, tag or commit of a hf: model.",
            "TEXT",
            "main",
        ),
        _secret("hub-token", "Token for gated hf: models."),
        Setting("offline", bool, False, "Never ask the hub; use what is in the cache."),
    ),
    "API": (
        Setting("host", str, "0.0.0.0", "The address to listen on.", "ADDRESS"),
        _port(
            "api-port", API_PORT, "HTTP API, dashboard and health endpoints; 0 takes any free one."
        ),
        _port(
            "health-port",
            HEALTH_PORT,
            "The gRPC health service, plaintext, for probes; 0 takes any free one.",
        ),
        _secret("api-key", "Ask for this key on /v1 and /api."),
        Setting(
            "max-requests",
            int,
            256,
            "Requests taken at a time; more are answered 429.",
            "N",
            least=1,
        ),
        Setting(
            "drain-seconds",
            float,
            30.0,
            "How long requests may take to end on SIGTERM.",
            "SECONDS",
            least=0,
        ),
    ),
    "Ring": (
        Setting(
            "node-id", str | None, None, "This node's name in the ring.", "TEXT", "the host's name"
        ),
        Setting(
            "cluster", str, "default", "Only nodes of the same cluster name form a ring.", "TEXT"
        ),
        _port("grpc-port", GRPC_PORT, "Where peers reach this node; 0 takes any free one."),
        Setting(
            "advertise-host",
            str,
            "",
            "The address peers are told.",
            "ADDRESS",
            "POD_IP, else found by the peers",
        ),
        Setting(
            "discovery", Literal["none", "udp", "manual", "dns"], "none", "How peers are found."
        ),
        Setting(
            "discovery-config",
            Path | None,
            None,
            "manual: a JSON file, re-read when it changes.",
            "FILE",
        ),
        Setting("discovery-name", str, "", "dns: the name of the ring's headless Service.", "HOST"),
        _port("discovery-port", DISCOVERY_PORT, "udp: the port of the broadcasts."),
        Setting(
            "memory",
            int | None,
            None,
            "What this node offers.",
            "MIB",
            "what the machine allows",
            least=0,
        ),
        Setting(
            "layers",
            str | None,
            None,
            "Pin this node to layers, like 0-14.",
            "FIRST-LAST",
            "by memory",
        ),
        Setting(
            "recovery-seconds",
            float,
            60.0,
            "How long a stream waits for a lost ring.",
            "SECONDS",
            least=0,
        ),
        Setting(
            "stuck-seconds",
            float,
            30.0,
            "After how long a hanging pass counts as stuck.",
            "SECONDS",
            least=1,
        ),
    ),
    # Apart from the ring: in one table the long --no-… flag would cut the others' names short at 80
    # columns.
    "Security": (
        Setting(
            "tls-dir",
            Path | None,
            None,
            "Mutual TLS: a folder with tls.crt, tls.key and ca.crt.",
            "PATH",
        ),
        Setting(
            "tls-check-identity", bool, False, "A peer's certificate must name its node id, too."
        ),
        _secret("secret", "A secret that all nodes of the ring share."),
    ),
    "Log": (
        Setting(
            "log-format",
            Literal["json", "console"] | None,
            None,
            "How to log.",
            "json|console",
            "by terminal",
        ),
        Setting("log-level", Literal["debug", "info", "warning", "error"], "info", "What to log."),
    ),
}
SETTINGS: Final = tuple(setting for settings in PANELS.values() for setting in settings)
BY_KEY: Final = {setting.key: setting for setting in SETTINGS}


def default_config() -> Path | None:
    """`exo/config.toml` in the user's configuration folder, where it is there."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = Path(base).expanduser() / "exo" / "config.toml"
    return path if path.is_file() else None


def read_config(path: Path) -> dict[str, Any]:
    """The file's settings by key. Raises `typer.BadParameter` that names the file and what is
    wrong.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{path}: not TOML: {error}") from None
    settings = {}
    for name, value in content.items():
        key = name.replace("-", "_")
        if key not in BY_KEY:
            known = ", ".join(setting.name for setting in SETTINGS)
            raise typer.BadParameter(f"{path}: unknown setting {name!r}; the settings are: {known}")
        if isinstance(value, dict | list):
            raise typer.BadParameter(
                f"{path}: {name}: expected one value, got a {type(value).__name__}"
            )
        if not BY_KEY[key].takes(value):
            raise typer.BadParameter(f"{path}: {name}: {BY_KEY[key].wrong(value)}")
        settings[key] = value
    return settings


def _load_config(ctx: typer.Context, value: Path | None) -> Path | None:
    path = value or default_config()
    if path is not None:
        ctx.default_map = read_config(path)
    return path


Command = Callable[[typer.Context, dict[str, Any]], None]


def with_settings(command: Command) -> Callable[..., None]:
    """A typer command with `--config` and a flag for each setting; `command` gets their values by
    key.
    """
    config = Annotated[
        Path | None,
        typer.Option(
            "--config", envvar="EXO_CONFIG", is_eager=True, callback=_load_config, help=CONFIG_HELP
        ),
    ]
    parameters = [
        inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context),
        inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=config
        ),
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
