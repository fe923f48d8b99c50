"""Release notes: fragments are named as the script expects, and it keeps what stood there."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from source_code import ROOT


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("changelog", ROOT / "hack" / "changelog.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_fragments_of_this_repository_have_good_names() -> None:
    load().fragments(ROOT / "changelog.d")


def test_a_fragment_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ring.improved.md").write_text("Better.")
    with pytest.raises(ValueError, match=r"ring\.improved\.md"):
        load().fragments(tmp_path)


def test_a_release_takes_unreleased_entries_and_fragments(tmp_path: Path) -> None:
    (tmp_path / "wide.fixed.md").write_text("Wide models\nwork.")
    page = "# Changes\n\n## Unreleased\n\n### Added\n\n- A page.\n\n## 0.1.0\n\nFirst.\n"
    changelog = load()
    made = changelog.released(page, "0.2.0", "2026-12-01", changelog.fragments(tmp_path))
    assert made == (
        "# Changes\n\n## Unreleased\n\n## 0.2.0 - 2026-12-01\n\n### Added\n\n- A page.\n\n"
        "### Fixed\n\n- Wide models\n  work.\n\n## 0.1.0\n\nFirst.\n"
    )
