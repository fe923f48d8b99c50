"""The command line: exit codes, one clear line for each error, help without heavy imports."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exo.cli import main
from exo.cli.settings.options import SETTINGS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def exo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Iterator[Run]:
    """Runs `exo ARGS` in this process: exit code, standard output, standard error."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "no-config"))
    monkeypatch.setenv("TERMINAL_WIDTH", "200")

    def run(*args: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["exo", *args])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


COMMANDS = (
    "serve",
    "run",
    "chat",
    "status",
    "models",
    "doctor",
    "config",
    "bench",
    "eval",
    "version",
)


def test_help_lists_every_command(exo: Run) -> None:
    code, out, _ = exo("--help")
    assert code == 0
    assert [name for name in COMMANDS if name not in out] == []


@pytest.mark.parametrize("command", [*COMMANDS, "eval logits", "eval perplexity"])
def test_every_command_explains_itself(exo: Run, command: str) -> None:
    code, out, _ = exo(*command.split(), "--help")
    assert code == 0
    assert "Usage" in out


@pytest.mark.parametrize("command", ["serve", "config"])
def test_no_flags_name_is_cut_at_80_columns(
    exo: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    _, out, _ = exo(command, "--help")
    assert [
        setting.name for setting in SETTINGS if not re.search(rf"--{setting.name}\s", out)
    ] == []


def test_models_prints_whole_paths(exo: Run) -> None:
    code, out, _ = exo("models")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith("smollm2-135m"))
    assert Path(row.split()[-1]).is_file()


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom exo.cli import main\nsys.argv = ['exo', 'serve', '--help']\ntry:\n   "
        " main()\nexcept SystemExit:\n    pass\nheavy = {'numpy', 'grpc', 'fastapi', 'uvicorn',"
        " 'httpx', 'onnxruntime', 'tokenizers', 'jinja2', 'asyncio'}\nprint('heavy:', sorted(heavy"
        " & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.splitlines()[-1] == "heavy: []"


def test_a_sigterm_while_the_modules_of_serve_load_is_a_clean_end() -> None:
    code = (
        "import os, signal, sys\nfrom exo.cli import main\nclass Killer:\n    def find_spec(self,"
        " name, path=None, target=None):\n        if name == 'exo.cli.commands.serve':\n           "
        " os.kill(os.getpid(), signal.SIGTERM)\nsys.meta_path.insert(0, Killer())\nsys.argv ="
        " ['exo', 'serve']\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("asked", ["version", "--version"])
def test_version_is_printed(exo: Run, asked: str) -> None:
    assert exo(asked)[:2] == (0, "exo 0.1.0\n")


def test_a_traceback_is_shown_where_it_is_asked_for(
    exo: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXO_DEBUG", "1")
    code, out, err = exo("run", "gpt-17", "--prompt", "x")
    assert (code, out) == (2, "")
    assert err.startswith("Traceback")
    assert "ModelNotFound" in err
    assert err.splitlines()[-1].startswith("exo: model 'gpt-17' is not here")


@pytest.mark.parametrize(
    "args",
    [
        ("fly",),
        ("serve", "--no-such-flag"),
        ("serve", "--api-port", "70000"),
        ("serve", "--api-port", "many"),
        ("serve", "--engine", "steam"),
        ("serve", "--layers", "all"),
        ("serve", "--node-id", "a b"),
        ("serve", "--discovery", "manual"),
        ("run",),
        ("run", "smollm2-135m", "--temperature", "9"),
        ("run", "smollm2-135m", "--prompt", " "),
        ("bench", "smollm2-135m", "--batch", "many"),
        ("status", "--url", "nowhere"),
    ],
)
def test_wrong_usage_exits_with_two(exo: Run, args: tuple[str, ...]) -> None:
    code, out, err = exo(*args)
    assert (code, out) == (2, "")
    assert "Traceback" not in err


def test_an_unknown_model_is_wrong_usage_and_the_models_are_named(exo: Run) -> None:
    code, out, err = exo("run", "gpt-17", "--prompt", "x")
    assert (code, out) == (2, "")
    assert "smollm2-135m" in err
    assert err.count("\n") == 1


def gguf(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return str(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "model.gguf"),
        (b"PK\x03\x04 not a model at all", "not a GGUF"),
        (b"GGUF\x03\x00\x00\x00\x05", "truncated"),
    ],
)
def test_a_broken_file_is_one_clear_line_and_exit_one(
    exo: Run, tmp_path: Path, content: bytes, says: str
) -> None:
    code, out, err = exo("run", gguf(tmp_path, content), "--prompt", "x")
    assert (code, out) == (1, "")
    assert says in err
    assert err.count("\n") == 1


def test_a_file_that_is_not_there_is_one_clear_line(exo: Run, tmp_path: Path) -> None:
    code, _, err = exo("run", str(tmp_path / "gone.gguf"), "--prompt", "x")
    assert code == 1
    assert "gone.gguf" in err
    assert err.count("\n") == 1


def test_a_file_that_cannot_be_read_is_one_clear_line(exo: Run, tmp_path: Path) -> None:
    (tmp_path / "loop.gguf").symlink_to(tmp_path / "loop.gguf")
    code, _, err = exo("run", str(tmp_path / "loop.gguf"), "--prompt", "x")
    assert code == 1
    assert "loop.gguf" in err
    assert err.count("\n") == 1


def test_status_without_a_node_says_how_to_start_one(exo: Run) -> None:
    code, out, err = exo("status", "--url", "http://127.0.0.1:9")
    assert (code, out) == (1, "")
    assert "exo serve" in err


def test_bad_eval_input_names_the_file(exo: Run, tmp_path: Path) -> None:
    tokens = tmp_path / "ids.json"
    tokens.write_text(json.dumps({"a": 1}))
    code, _, err = exo(
        "eval", "logits", "smollm2-135m", "--tokens-file", str(tokens), "--out", str(tmp_path / "o")
    )
    assert code == 2
    assert "ids.json" in err


@pytest.mark.parametrize(
    ("args", "option"),
    [
        (
            ("eval", "logits", "smollm2-135m", "--tokens-file", "none", "--out", "o.npz"),
            "--tokens-file: none: No such",
        ),
        (
            ("eval", "logits", "smollm2-135m", "--tokens-file", "ids.json", "--out", "none/o.npz"),
            "--out: none/o.npz",
        ),
        (("eval", "perplexity", "smollm2-135m", "--text", "none.txt"), "--text: none.txt"),
        (("bench", "smollm2-135m", "--shards", "31"), "--shards: the model has 30 layers"),
        (
            ("bench", "smollm2-135m", "--engine", "numpy", "--prefill", "9999"),
            "--prefill: the context window",
        ),
    ],
)
def test_an_option_that_cannot_work_is_named(
    exo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ids.json").write_text("[[1]]")
    code, out, err = exo(*args)
    assert (code, out) == (2, "")
    assert err.startswith(f"exo: {option}")
