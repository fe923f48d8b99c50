"""Converted weights on disk: whole or not there, rebuilt when broken, bounded, shared."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest

from exo.inference.onnx.conversion_cache import MANIFEST, STALE_SECONDS, ConversionCache, find_fault


class Builder:
    def __init__(self, contents: bytes = b"weights") -> None:
        self.contents = contents
        self.calls = 0

    def __call__(self, folder: Path) -> None:
        self.calls += 1
        (folder / "weights.bin").write_bytes(self.contents)


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    build = Builder()
    first = ConversionCache(tmp_path, 1000).get("key", build)
    second = ConversionCache(tmp_path, 1000).get("key", build)
    assert first == second == tmp_path / "key"
    assert build.calls == 1
    assert (first / "weights.bin").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "damage", ["truncated", "flipped", "missing", "no manifest", "odd manifest", "path in manifest"]
)
def test_a_broken_entry_is_built_anew_and_the_log_says_so(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    build, cache = Builder(), ConversionCache(tmp_path, 1000)
    entry = cache.get("key", build)
    weights, manifest = entry / "weights.bin", entry / MANIFEST
    if damage == "truncated":
        weights.write_bytes(b"weigh")
    elif damage == "flipped":
        weights.write_bytes(b"weigHts")
    elif damage == "missing":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "odd manifest":
        manifest.write_text("[1]")
    else:
        manifest.write_text('{"files": {"../key/weights.bin": [7, "x"]}}')
    with caplog.at_level(logging.WARNING):
        again = cache.get("key", build)
    assert build.calls == 2
    assert "converting again" in caplog.text
    assert find_fault(again) is None


def test_a_build_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        ConversionCache(tmp_path, 1000).get("key", build)
    assert list(tmp_path.iterdir()) == []


def test_of_two_nodes_that_build_at_once_the_first_wins_and_both_go_on(tmp_path: Path) -> None:
    other = Builder(b"theirs")

    def build(folder: Path) -> None:
        (folder / "weights.bin").write_bytes(b"ours")
        ConversionCache(tmp_path, 1000).get("key", other)

    entry = ConversionCache(tmp_path, 1000).get("key", build)
    assert (entry / "weights.bin").read_bytes() == b"theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["key"]


def test_the_least_recently_used_entries_go_when_the_cache_is_full(tmp_path: Path) -> None:
    cache = ConversionCache(tmp_path, 2500)
    for age, key in ((300, "a"), (200, "b")):
        entry = cache.get(key, Builder(b"x" * 1000))
        os.utime(entry, (entry.stat().st_mtime - age,) * 2)
    cache.get("a", Builder())  # used again
    cache.get("c", Builder(b"x" * 1000))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "c"]


def test_an_entry_larger_than_the_bound_is_still_usable(tmp_path: Path) -> None:
    entry = ConversionCache(tmp_path, 10).get("key", Builder(b"x" * 1000))
    assert find_fault(entry) is None


def test_what_a_killed_node_left_goes_after_an_hour(tmp_path: Path) -> None:
    for name, age in ((".tmp-old", STALE_SECONDS + 60), (".tmp-young", 60.0)):
        left = tmp_path / name
        left.mkdir()
        (left / "weights.bin").write_bytes(b"x")
        os.utime(left, (left.stat().st_mtime - age,) * 2)
    ConversionCache(tmp_path, 1000).get("key", Builder())
    assert sorted(p.name for p in tmp_path.iterdir()) == [".tmp-young", "key"]


def test_foreign_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    (tmp_path / "photos").mkdir()
    ConversionCache(tmp_path, 0).get("key", Builder())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "note.txt", "photos"]


def test_without_a_usable_folder_entries_are_private(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    cache = ConversionCache(in_the_way / "cache", 1000)
    with caplog.at_level(logging.WARNING):
        entry = cache.get("key", Builder())
    assert entry.is_dir()
    assert "not kept" in caplog.text
    cache.close()
    assert not entry.exists()


def test_a_discarded_entry_is_gone(tmp_path: Path) -> None:
    cache, build = ConversionCache(tmp_path, 1000), Builder()
    cache.discard(cache.get("key", build))
    cache.discard(tmp_path / "key")  # another node was quicker
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_makes_the_entry_private_and_leaves_nothing_half_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build = Builder()

    def on_a_full_disk(folder: Path) -> None:
        build(folder)
        if folder.is_relative_to(tmp_path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ConversionCache(tmp_path, 1000)
    with caplog.at_level(logging.WARNING):
        entry = cache.get("key", on_a_full_disk)
    assert (
        f"cache folder {tmp_path}: No space left on device; converted weights are not kept"
        in caplog.text
    )
    assert (entry / "weights.bin").read_bytes() == b"weights"
    assert list(tmp_path.iterdir()) == []
    cache.close()
    assert not entry.exists()


def test_a_disk_that_is_full_everywhere_is_an_error(tmp_path: Path) -> None:
    def on_a_full_disk(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ConversionCache(tmp_path, 1000)
    with pytest.raises(OSError, match="No space left"):
        cache.get("key", on_a_full_disk)
    cache.close()


def test_what_a_killed_start_left_goes_at_the_next_one_even_where_nothing_is_converted(
    tmp_path: Path,
) -> None:
    cache = ConversionCache(tmp_path, 1000)
    entry = cache.get("key", Builder())
    left = tmp_path / ".tmp-of-a-killed-start"
    left.mkdir()
    os.utime(left, (0, 0))
    assert cache.get("key", Builder()) == entry
    assert not left.exists()
