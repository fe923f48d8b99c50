"""A wrong value is answered with where it came from: the variable,
or the config file and its key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from exo.cli import main

Refused = Callable[..., str]
PORT = "expected a whole number from 0 to 65535, got"


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Refused:
    """Runs `exo ARGS`, which must be wrong usage: the one line it says."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))

    def run(*args: str) -> str:
        monkeypatch.setattr(sys, "argv", ["exo", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert (ended.value.code, said.out, said.err.count("\n")) == (2, "", 1)
        return said.err.strip()

    return run


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("EXO_API_PORT", "abc", f"{PORT} 'abc'"),
        ("EXO_API_PORT", "70000", f"{PORT} '70000'"),
        ("EXO_MEMORY", "1.5", "expected a whole number of at least 0, got '1.5'"),
        ("EXO_DRAIN_SECONDS", "soon", "expected a number of at least 0, got 'soon'"),
        ("EXO_OFFLINE", "maybe", "expected true or false, got 'maybe'"),
        ("EXO_ENGINE", "steam", "expected one of auto, onnx, numpy, dummy, got 'steam'"),
        ("EXO_LOG_FORMAT", "xml", "expected one of json, console, got 'xml'"),
        ("EXO_LAYERS", "all", "'all' is not a range of layers like 0-14"),
        ("EXO_TLS_DIR", "/nowhere", "/nowhere: no such file or folder"),
        ("EXO_CONFIG", "/nowhere.toml", "/nowhere.toml: No such file or directory"),
    ],
)
def test_a_wrong_value_in_the_environment_names_the_variable(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, says: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert refused("serve") == f"exo: {variable}: {says}"


def test_commands_without_a_config_file_name_the_variable_too(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXO_ENGINE", "steam")
    assert refused("run", "dummy").startswith("exo: EXO_ENGINE: expected one of ")


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('api-port = "abc"', f"api-port: {PORT} 'abc'"),
        ("api_port = 70000", f"api-port: {PORT} 70000"),
        ("api-port = true", f"api-port: {PORT} true"),
        ("memory = 1.5", "memory: expected a whole number of at least 0, got 1.5"),
        ("offline = 1", "offline: expected true or false, got 1"),
        ("model = 5", "model: expected text in quotes, got 5"),
        ("models-dir = 2026-01-01", "models-dir: expected a path in quotes, got 2026-01-01"),
        ("engine = 1", "engine: expected one of auto, onnx, numpy, dummy, got 1"),
        ('layers = "all"', "layers: 'all' is not a range of layers like 0-14"),
        ('cluster = ""', "cluster: 0 characters, must be 1 to 128"),
        ("secret = 1001", "secret: expected text in quotes"),
        ("api-prt = 1", "unknown setting 'api-prt'; the settings are: "),
    ],
)
@pytest.mark.parametrize("chosen", ["flag", "variable", "the user's own"])
def test_a_wrong_value_in_a_config_file_names_the_file_and_the_key(
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    says: str,
    chosen: str,
) -> None:
    file = tmp_path / "exo" / "config.toml"
    file.parent.mkdir()
    file.write_text(line)
    if chosen == "variable":
        monkeypatch.setenv("EXO_CONFIG", str(file))
    said = refused("serve", *(["--config", str(file)] if chosen == "flag" else []))
    assert f"{file}: {says}" in said


def test_a_wrong_flag_is_named_even_if_the_file_has_a_wrong_value(
    refused: Refused, tmp_path: Path
) -> None:
    file = tmp_path / "node.toml"
    file.write_text('layers = "all"')
    assert refused("serve", "--config", str(file), "--layers", "few").startswith(
        "exo: --layers: 'few' "
    )
