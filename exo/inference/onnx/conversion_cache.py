"""Converted shards on disk, so that a second start is fast. Knows files, no models.

An entry is a folder named by its key, with a manifest of its files' sizes and hashes. It is built
under a temporary name and then renamed, so that a reader, on this node or on another one with the
same volume, sees all of it or nothing. A broken entry is removed and built again. When the total is
too large, the least recently used entries are removed; a process that has mapped one keeps it until
it closes the mapping.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
# Temporary folders older than this were left behind by a process that ended early.
STALE_SECONDS: Final = 3600.0
_PREFIX: Final = ".tmp-"
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})


class ConversionCache:
    """With `folder` None, or one that is full or cannot be written to, the entry is private and
    removed by `close`.
    """

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._private: tempfile.TemporaryDirectory[str] | None = None

    def get(self, key: str, build: Callable[[Path], None]) -> Path:
        """The folder of the entry; `build(folder)` fills it where it is missing or broken."""
        root = self._usable_root()
        try:
            return self._get(root, key, build)
        except OSError as error:
            if error.errno not in _FULL or root != self._folder:
                raise
            _not_kept(root, error)
            return self._get(self._private_root(), key, build)

    def _get(self, root: Path, key: str, build: Callable[[Path], None]) -> Path:
        entry = root / key
        if entry.is_dir():
            fault = find_fault(entry)
            if fault is None:
                os.utime(entry)
                self._shrink(root, keep=entry)  # a killed start may have left something
                return entry
            logger.warning(
                "converted weights %s are broken (%s): converting again", entry.name, fault
            )
            self._discard(entry)
        self._build(root, entry, build)
        self._shrink(root, keep=entry)
        return entry

    def discard(self, entry: Path) -> None:
        """Remove an entry that turned out to be unusable."""
        logger.warning("converted weights %s cannot be loaded: removed", entry.name)
        self._discard(entry)

    def close(self) -> None:
        if self._private is not None:
            self._private.cleanup()
            self._private = None

    def _usable_root(self) -> Path:
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                if os.access(self._folder, os.W_OK | os.X_OK):
                    return self._folder
                raise PermissionError(errno.EACCES, "not writable")
            except OSError as error:
                _not_kept(self._folder, error)
        return self._private_root()

    def _private_root(self) -> Path:
        if self._private is None:
            self._private = tempfile.TemporaryDirectory(prefix="exo-onnx-")
        return Path(self._private.name)

    def _build(self, root: Path, entry: Path, build: Callable[[Path], None]) -> None:
        making = root / f"{_PREFIX}{uuid.uuid4().hex}"
        making.mkdir()
        try:
            build(making)
            _write_manifest(making)
            try:
                making.rename(entry)
            except OSError:
                # Another node was faster; its entry is the same.
                if find_fault(entry) is not None:
                    raise
        finally:
            shutil.rmtree(making, ignore_errors=True)

    @staticmethod
    def _discard(entry: Path) -> None:
        aside = entry.with_name(f"{_PREFIX}{uuid.uuid4().hex}")
        try:
            entry.rename(aside)
        except FileNotFoundError:
            return  # another node has removed it
        shutil.rmtree(aside, ignore_errors=True)

    def _shrink(self, root: Path, keep: Path) -> None:
        now = time.time()
        entries: list[tuple[float, int, Path]] = []
        for path in root.iterdir():
            try:
                used, size = (
                    path.stat().st_mtime,
                    sum(f.stat().st_size for f in path.iterdir() if f.is_file()),
                )
            except OSError:
                continue  # removed in the meantime, or not a folder
            if path.name.startswith(_PREFIX):
                if now - used > STALE_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
            elif (path / MANIFEST).is_file():
                entries.append((used, size, path))
        excess = sum(size for _, size, _ in entries) - self._max_bytes
        for _, size, path in sorted(entries):
            if excess > 0 and path != keep:
                logger.info(
                    "converted weights %s removed: the cache is over %d bytes",
                    path.name,
                    self._max_bytes,
                )
                self._discard(path)
                excess -= size


def _not_kept(folder: Path, error: OSError) -> None:
    logger.warning(
        "cache folder %s: %s; converted weights are not kept", folder, error.strerror or error
    )


def find_fault(entry: Path) -> str | None:
    """What is wrong with an entry; None: nothing."""
    try:
        manifest = json.loads((entry / MANIFEST).read_text())
        files = {
            str(name): (int(size), str(digest))
            for name, (size, digest) in manifest["files"].items()
        }
        for name, (size, digest) in files.items():
            if Path(name).name != name:
                return f"{name!r} is not a file name"
            actual = (entry / name).stat().st_size
            if actual != size:
                return f"{name} has {actual} bytes instead of {size}"
            if _digest(entry / name) != digest:
                return f"{name} has other contents than were written"
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error!r}"
    return None


def _write_manifest(folder: Path) -> None:
    files = {path.name: (path.stat().st_size, _digest(path)) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps({"files": files}))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
