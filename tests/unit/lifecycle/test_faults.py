"""Faults that a tester injects into a running node by files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from exo.lifecycle import AsyncResource
from exo.lifecycle.faults import hang, injected_fault, is_hanging, use_folder


class Part(AsyncResource):
    RESOURCE_TYPE = "part"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    use_folder(tmp_path)
    yield tmp_path
    use_folder(None)


def test_nothing_fails_or_hangs_without_a_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "part").write_text("why")
    (folder / "hang-part").touch()
    assert (injected_fault(Part()), is_hanging(Part())) == ("why", True)
    use_folder(None)
    # Only the command line reads the variable.
    monkeypatch.setenv("EXO_FAULT_DIR", str(folder))
    assert (injected_fault(Part()), is_hanging(Part())) == (None, False)


@pytest.mark.parametrize("name", ["part", "part-7"])
def test_a_file_named_for_the_type_or_the_id_fails_or_hangs_that_part_alone(
    folder: Path, name: str
) -> None:
    mine, other = Part(resource_id="part-7"), Part(resource_id="other", resource_type="other")
    (folder / name).write_text("why\n")
    assert (injected_fault(mine), injected_fault(other)) == ("why", None)
    assert not is_hanging(mine)
    (folder / f"hang-{name}").touch()
    assert (is_hanging(mine), is_hanging(other)) == (True, False)


def test_what_hangs_goes_on_when_the_file_is_gone(folder: Path) -> None:
    part, file = Part(), folder / "hang-part"
    file.touch()
    thread = threading.Thread(target=hang, args=(part,), daemon=True)
    thread.start()
    assert thread.is_alive()
    file.unlink()
    thread.join(10)
    assert not thread.is_alive()
