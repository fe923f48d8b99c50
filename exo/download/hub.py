"""One Hugging Face hub through `huggingface_hub`: what a repository has, and its files, each
checked by its hash.

Blocks, so it runs in threads. Files go to the library's own cache, which resumes interrupted
downloads and may be shared. Faults that may pass (429, 5xx, broken connections, a wrong hash) are
tried again; the others become `CheckpointError` or `ModelNotFound` in plain words.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from exo.contract import env_name
from exo.inference.errors import CheckpointError, ModelNotFound
from exo.utils.error_handling import FailedTry, retrying_blocking

log = logging.getLogger(__name__)
T = TypeVar("T")
TOKEN = f"--hub-token, {env_name('hub-token')}"
HASH = re.compile(r"[0-9a-f]{40,64}", re.ASCII)
TRANSIENT = (408, 429, 500, 502, 503, 504)
LONGEST_PAUSE = 60.0


class WrongContent(Exception):
    """A file whose hash is not what the hub says."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """sha256: "" for small files, which the hub keeps in git under a different hash."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Repository:
    """commit: what the revision asked for is now; everything is fetched from this one."""

    repo: str
    commit: str
    files: dict[str, HubFile]


class Hub:
    """endpoint: address of the hub; None: the library's default, the public hub.
    pause: seconds before the second try; later pauses are longer.

    Setting `cancelled` ends waiting and retrying.
    """

    def __init__(
        self,
        cache: Path,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool = False,
        attempts: int = 6,
        pause: float = 0.5,
    ) -> None:
        self._cache = cache
        self._endpoint = endpoint
        self._token: str | bool = token if token is not None else False
        self._offline = offline
        self._attempts = attempts
        self._pause = pause
        self.cancelled = threading.Event()

    def look_up(self, repo: str, revision: str | None) -> Repository:
        """Raises `ModelNotFound` for what the hub does not have or show, `CheckpointError` when the
        hub fails.
        """
        if self._offline:
            return self.cached(repo, revision)
        api = HfApi(endpoint=self._endpoint, token=self._token)
        info = self._try(
            repo, lambda: api.model_info(repo, revision=revision, files_metadata=True, timeout=30.0)
        )
        files = {
            each.rfilename: HubFile(
                each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else ""
            )
            for each in info.siblings or ()
        }
        for name in (str(info.sha), *(file.sha256 for file in files.values() if file.sha256)):
            if not HASH.fullmatch(name):  # they become file names here
                raise CheckpointError(
                    f"the hub names a commit or content {name[:80]!r}, which is not a hash",
                    path=repo,
                )
        self._remember(repo, revision, str(info.sha))
        return Repository(repo, str(info.sha), files)

    def fetch(self, repository: Repository, name: str) -> Path:
        """The file, complete and checked."""
        return self._try(
            repository.repo, lambda: self._fetch_once(repository, repository.files[name])
        )

    def _fetch_once(self, repository: Repository, file: HubFile) -> Path:
        path = Path(
            hf_hub_download(
                repository.repo,
                file.name,
                revision=repository.commit,
                cache_dir=self._cache,
                token=self._token,
                endpoint=self._endpoint,
                local_files_only=self._offline,
            )
        )
        if file.sha256:
            self._verify(path.resolve(), file.sha256)
        return path

    def _verify(self, path: Path, expected: str) -> None:
        """Once for each file: a marker in the cache remembers it."""
        mark = self._cache / "verified" / expected
        if mark.exists() and mark.stat().st_mtime >= path.stat().st_mtime:
            return
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            path.unlink(missing_ok=True)
            raise WrongContent(
                f"the content has the SHA-256 {found[:16]}…, the hub names {expected[:16]}…"
            )
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def _ref(self, repo: str, revision: str | None) -> Path:
        """Where the cache keeps the commit of a branch or tag; the library uses the same place."""
        return self._cache / f"models--{repo.replace('/', '--')}" / "refs" / (revision or "main")

    def _remember(self, repo: str, revision: str | None, commit: str) -> None:
        ref = self._ref(repo, revision)
        try:
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)
        except OSError as error:
            raise CheckpointError(
                f"cannot be written: {error.strerror or error}", path=str(ref)
            ) from error

    def cached(self, repo: str, revision: str | None) -> Repository:
        """What an earlier run left in the cache. Raises `CheckpointError` when it left nothing."""
        folder = self._cache / f"models--{repo.replace('/', '--')}"
        ref = self._ref(repo, revision)
        commit = ref.read_text().strip() if ref.is_file() else (revision or "")
        snapshot = folder / "snapshots" / commit
        if not commit or not snapshot.is_dir():
            raise CheckpointError(
                f"{repo} at {revision or 'main'} is not in the cache, and this node is offline",
                path=str(self._cache),
            )
        files = {
            each.name: HubFile(each.name, each.stat().st_size, "") for each in snapshot.iterdir()
        }
        return Repository(repo, commit, files)

    def _try(self, repo: str, operation: Callable[[], T]) -> T:
        """Try again on faults that may pass, and raise the last one in words."""

        def warn(failed: FailedTry) -> None:
            log.warning(
                "%s: try %d failed, again in %.1f s: %s",
                repo,
                failed.number,
                failed.pause,
                failed.error,
            )

        tries = retrying_blocking(
            on=(Exception,),
            idempotent=True,
            attempts=self._attempts,
            base=self._pause,
            most=LONGEST_PAUSE,
            jitter=0.5,
            when=lambda error: _passes(error) and not self.cancelled.is_set(),
            delay_for=_retry_after,
            on_retry=warn,
            sleep=self.cancelled.wait,
        )
        try:
            return tries(operation)()
        except Exception as error:
            raise _in_words(repo, error) from error


def is_unreachable(error: CheckpointError) -> bool:
    """Whether the hub could not be asked, as opposed to what it answered."""
    return isinstance(error.__cause__, Exception) and _passes(error.__cause__)


def _passes(error: Exception) -> bool:
    """Whether trying again may help."""
    if isinstance(error, HfHubHTTPError):
        return error.response is not None and error.response.status_code in TRANSIENT
    # What the library raises when neither network nor cache has it.
    if isinstance(error, LocalEntryNotFoundError):
        cause = error.__cause__
        return cause is None or not isinstance(cause, Exception) or _passes(cause)
    if isinstance(error, WrongContent | ConnectionError | TimeoutError) or _is_transport(error):
        return True
    # "Consistency check failed": the download broke off.
    return isinstance(error, OSError) and error.errno is None


def _is_transport(error: Exception) -> bool:
    """By name: the library has changed its HTTP client before, and none of them is a dependency
    here.
    """
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _retry_after(error: Exception) -> float | None:
    """The pause that a busy hub asks for, within reason."""
    response: Any = getattr(error, "response", None)
    value = response.headers.get("retry-after", "") if response is not None else ""
    if not value.isdecimal() or float(value) == 0:
        return None
    return min(float(value), LONGEST_PAUSE)


def _in_words(repo: str, error: Exception) -> Exception:
    match error:
        case GatedRepoError():
            return CheckpointError(
                f"is gated: accept its terms on the hub and give a token ({TOKEN})", path=repo
            )
        case RepositoryNotFoundError():
            message = (
                f"the hub has no model {repo!r}, or shows it only to those with a token ({TOKEN})"
            )
            return ModelNotFound(f"hf:{repo}", (), message)
        case RevisionNotFoundError():
            return CheckpointError("the hub has no such revision", path=repo)
        case WrongContent():
            return CheckpointError(
                f"{error}; the download is damaged or the hub is not to be trusted", path=repo
            )
        case OSError() if error.errno is not None:
            return CheckpointError(f"cannot be stored: {os.strerror(error.errno)}", path=repo)
    return CheckpointError(f"cannot be fetched: {error}", path=repo)
