"""The generated page of settings: every setting, and known to be stale."""

from __future__ import annotations

from pathlib import Path

import pytest

from exo.cli.settings.options import SETTINGS
from exo.cli.settings.reference import main, page
from exo.contract import env_name


def test_every_setting_has_a_row_with_its_flag_variable_and_key() -> None:
    rows = [line for line in page().splitlines() if line.startswith("| `--")]
    assert len(rows) == len(SETTINGS)
    for setting, row in zip(SETTINGS, rows, strict=True):
        begin = f"| `--{setting.name}` | `{env_name(setting.name)}` | `{setting.name}` |"
        assert row.startswith(begin)
        assert row.endswith(f" {setting.help} |")
        assert row.replace("\\|", "").count("|") == 7


def test_a_stale_page_is_reported_and_rewritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "reference" / "settings.md"
    assert main(["--check", str(there)]) == 1
    assert not there.exists()
    assert main([str(there)]) == 0
    assert main(["--check", str(there)]) == 0
    there.write_text(there.read_text().replace("52415", "1"))
    assert main(["--check", str(there)]) == 1
    assert "is stale" in capsys.readouterr().err
