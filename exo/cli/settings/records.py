"""From the values of settings to the records that the program is built from.

The options table names the field that each setting fills, so a setting cannot be accepted and then
forgotten. A wrong value is reported by the name of its flag.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from exo.api.settings import ApiSettings
from exo.cli.failures import USAGE, Failure
from exo.cli.settings import defaults
from exo.cli.settings.options import SETTINGS, TLS_FILES
from exo.contract import env_name
from exo.inference.engines.options import EngineOptions
from exo.node.settings import NodeSettings

Values = Mapping[str, Any]
RecordT = TypeVar("RecordT")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSettings:
    """What concerns the process as a whole."""

    health_port: int
    log_format: Literal["json", "console"]
    log_level: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """Everything that `exo serve` runs with."""

    node: NodeSettings
    api: ApiSettings
    process: ProcessSettings


# The records by the name that the table uses; `engine` becomes a part of `node`.
RECORDS: Final[Mapping[str, type]] = {
    "node": NodeSettings,
    "engine": EngineOptions,
    "api": ApiSettings,
    "process": ProcessSettings,
}
# The settings that concern models, caches and engines.
_LOCAL: Final = (
    *("models_dir", "cache_dir", "hub_revision", "hub_token", "offline"),
    *("weight_format", "kv_budget", "max_sequences", "threads"),
)
# Which flag a person knows a record's field by.
_FLAG_OF: Final = {feed.field: setting.name for setting in SETTINGS for feed in setting.feeds}


def serve_settings(values: Values, environ: defaults.Environment) -> ServeSettings:
    """Raises `Failure` (usage) naming the setting. `values`: of all settings, by key."""
    fields = _fields(values, environ)
    return ServeSettings(
        node=_node(fields),
        api=_made("api", ApiSettings, fields["api"]),
        process=_made("process", ProcessSettings, fields["process"]),
    )


def local_settings(environ: defaults.Environment) -> NodeSettings:
    """The settings of a command that runs a model without a server: those of the environment that
    concern models, caches and engines. Raises `Failure`.
    """
    values = {setting.key: setting.default for setting in SETTINGS}
    return _node(_fields(values | from_environment(environ, *_LOCAL), environ))


def from_environment(environ: defaults.Environment, *keys: str) -> dict[str, Any]:
    """The settings of these keys that the environment sets. Raises `Failure` naming a variable."""
    found = {}
    for setting in SETTINGS:
        text = environ.get(env_name(setting.name))
        if setting.key in keys and text:
            try:
                found[setting.key] = setting.parse(text)
            except ValueError as error:
                raise Failure(f"{env_name(setting.name)}: {error}", USAGE) from None
    return found


def _node(fields: Mapping[str, Mapping[str, Any]]) -> NodeSettings:
    engine = _made("engine", EngineOptions, fields["engine"])
    return _made("node", NodeSettings, {**fields["node"], "engine_options": engine})


def _fields(values: Values, environ: defaults.Environment) -> dict[str, dict[str, Any]]:
    """The fields of each record that have a value."""
    made: dict[str, dict[str, Any]] = {record: {} for record in RECORDS}

    def fill(field: str, value: Any) -> None:
        record, _, name = field.partition(".")
        if value is not None:
            made[record][name] = value

    for setting in SETTINGS:
        value = values[setting.key]
        if value == "" and setting.default is None:  # a variable that is set to nothing
            value = None
        if value in (None, "") and setting.key in defaults.FOUND:
            value = defaults.FOUND[setting.key](environ)
        for feed in setting.feeds:
            fill(feed.field, feed.convert(value))
    for field, find in defaults.BESIDES.items():
        fill(field, find(environ))
    return made


def _made(record: str, make: Callable[..., RecordT], fields: Mapping[str, Any]) -> RecordT:
    try:
        return make(**fields)
    except ValueError as error:  # `node_id: ...` is known to people as `--node-id: ...`
        name, _, rest = str(error).partition(": ")
        flag = _FLAG_OF.get(f"{record}.{name}")
        raise Failure(f"--{flag}: {rest}" if flag else str(error), USAGE) from None


def check_files(values: Values) -> None:
    """Faults that would otherwise show up when the node starts, without the name of the flag.
    Raises `Failure`.
    """
    files = {}
    if values["discovery"] == "manual" and values["discovery_config"] is not None:
        files["discovery-config"] = Path(values["discovery_config"])
    if values["tls_dir"] is not None:
        folder = Path(values["tls_dir"])
        files |= {"tls-dir": folder}
        files |= {f"tls-dir: {name}": folder / name for name in TLS_FILES.values()}
    for flag, path in files.items():
        if not path.exists():
            raise Failure(f"--{flag}: {path}: no such file or folder", USAGE)
    if values["discovery"] == "dns" and values["grpc_port"] == 0:
        raise Failure(
            "--grpc-port: dns discovery dials every node at this port, so it cannot be any"
            " free one",
            USAGE,
        )
