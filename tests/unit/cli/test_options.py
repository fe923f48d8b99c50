"""Settings: flag before environment before config file before default; what is printed of them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from exo.cli import main
from exo.cli.settings.config_file import read_config
from exo.cli.settings.configuration import lines
from exo.cli.settings.options import BY_KEY, SETTINGS

DEFAULTS: dict[str, Any] = {setting.key: setting.default for setting in SETTINGS}
Show = Callable[..., dict[str, str]]


@pytest.fixture
def config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Show:
    """Runs `exo config ARGS`: the lines by setting."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")

    def run(*args: str) -> dict[str, str]:
        monkeypatch.setattr(sys, "argv", ["exo", "config", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        shown = [
            line.removeprefix("# ").partition(" = ")
            for line in capsys.readouterr().out.splitlines()
        ]
        return {name: rest for name, _, rest in shown}

    return run


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    config: Show, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("api-port = 1\ngrpc-port = 1\nhealth_port = 1\n")
    monkeypatch.setenv("EXO_API_PORT", "2")
    monkeypatch.setenv("EXO_GRPC_PORT", "2")
    shown = config("--config", str(file), "--api-port", "3")
    assert shown["api-port"] == "3  # --api-port"
    assert shown["grpc-port"] == "2  # EXO_GRPC_PORT"
    assert shown["health-port"] == f"1  # {file}: health-port"
    assert shown["discovery-port"] == "5678  # default"


def test_the_users_own_file_is_found(config: Show, tmp_path: Path) -> None:
    file = tmp_path / "exo" / "config.toml"
    file.parent.mkdir()
    file.write_text('model = "tiny"\noffline = true\nsecret = "hush-hush"\n')
    shown = config()
    assert shown["model"] == f'"tiny"  # {file}: model'
    assert shown["offline"] == f"true  # {file}: offline"
    assert shown["secret"] == f"(secret)  # {file}: secret"


def test_a_misspelt_variable_is_reported_below_the_settings(
    config: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXO_GPRC_PORT", "7")
    shown = config()
    assert shown["grpc-port"] == "50051  # default"
    assert list(shown)[-1] == "EXO_GPRC_PORT is not a setting; did you mean EXO_GRPC_PORT?"


def test_secrets_are_never_printed(config: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXO_API_KEY", "EXO_SECRET", "EXO_HUB_TOKEN"):
        monkeypatch.setenv(name, "hush-hush")
    shown = config()
    assert "hush-hush" not in str(shown)
    assert shown["api-key"].startswith("(secret)")


def test_what_is_printed_is_a_config_file_again(tmp_path: Path) -> None:
    values = {
        key: (value, "default")
        for key, value in {**DEFAULTS, "model": 'a "b" \\c', "memory": 5}.items()
    }
    file = tmp_path / "again.toml"
    file.write_text("\n".join(lines(values, BY_KEY)))
    again = read_config(file)
    assert again == {key: value for key, (value, _) in values.items() if value not in (None, "")}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("api-prt = 1", "api-prt"),
        ("api-port = [1]", "api-port"),
        ("[api]\nport = 1", "api"),
        ("api-port =", "not TOML"),
        (b"\xff\xfe", "not TOML"),
    ],
)
def test_a_wrong_config_file_is_named(tmp_path: Path, content: str | bytes, says: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(typer.BadParameter) as wrong:
        read_config(file)
    assert says in str(wrong.value)
    assert "bad.toml" in str(wrong.value)


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="No such file"):
        read_config(tmp_path / "none.toml")


def test_the_operators_settings_are_all_known() -> None:
    from_operator = {
        "node-id",
        "model",
        "engine",
        "host",
        "api-port",
        "grpc-port",
        "health-port",
        "discovery",
        "drain-seconds",
        "log-format",
        "cluster",
        "discovery-name",
        "memory",
        "layers",
        "tls-dir",
        "api-key",
    }
    assert from_operator <= {setting.name for setting in SETTINGS}
