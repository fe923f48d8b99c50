"""`ManualDiscovery`: peers from a JSON file, read again whenever it changes. Only the nodes in the
file are peers.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from exo.lifecycle import ResourceDegraded
from exo.networking.discovery import PeerFactory
from exo.networking.manual.peers_file import MAX_FILE_BYTES, BadPeersFile, parse_peers
from exo.networking.peer_pool import Candidate
from exo.networking.pooled_discovery import PooledDiscovery

log = logging.getLogger(__name__)


class ManualDiscovery(PooledDiscovery):
    """A file that is wrong at the start makes `initialize` fail. One that becomes wrong later
    degrades the discovery, and the peers stay.

    poll_interval: seconds between two reads of the file.
    """

    def __init__(
        self,
        node_id: str,
        path: str | Path,
        create_peer_handle: PeerFactory,
        *,
        poll_interval: float = 0.5,
    ) -> None:
        super().__init__(node_id, create_peer_handle)
        if poll_interval <= 0:
            raise ValueError(f"poll_interval: {poll_interval} must be more than 0 seconds")
        self._path = Path(path)
        self._poll_interval = poll_interval
        self._text: str | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """What is wrong with the file now; "" if nothing is."""
        return self._problem

    async def _do_initialize(self) -> None:
        await super()._do_initialize()
        self._problem = ""
        try:
            self._text = await asyncio.to_thread(self._read)
            candidates = parse_peers(self._text)
        except BadPeersFile as error:
            # The command line shows the last cause, so that is what must name the file.
            raise BadPeersFile(f"{self._path}: {error}") from None
        await self._pool.update(candidates, keep_connected=False)
        self._task_manager.start_task("watch peers file", self._watch)

    async def _do_health_check(self) -> bool:
        if self._problem:
            raise ResourceDegraded(self._problem, resource_id=self.resource_id, state=self.state)
        return True

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_interval)
            candidates = await self._changed()
            if candidates is not None:
                await self._pool.update(candidates, keep_connected=False)

    async def _changed(self) -> tuple[Candidate, ...] | None:
        """The file's candidates if its content has changed and is right."""
        try:
            text = await asyncio.to_thread(self._read)
            if text == self._text:
                self._set_problem("")
                return None
            candidates = parse_peers(text)
        except (OSError, BadPeersFile) as error:
            named = str(error) if isinstance(error, OSError) else f"{self._path}: {error}"
            self._set_problem(f"{named}; the earlier peers stay")
            return None
        self._set_problem("")
        self._text = text
        log.info("%s: %d peers", self._path, len(candidates))
        return candidates

    def _set_problem(self, problem: str) -> None:
        if problem != self._problem and problem:
            log.warning("%s", problem)
        self._problem = problem

    def _read(self) -> str:
        with self._path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise BadPeersFile(f"the file has more than {MAX_FILE_BYTES} bytes")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise BadPeersFile(f"byte {error.start}: is no UTF-8 text") from None
