"""Optional mutual TLS between nodes, from PEM files that may be replaced while the node runs.

Every node's certificate must be valid for the DNS name `server_name`, because peers are dialled by
address and certificates list no addresses. A server reads the files again at the first handshake
after they changed, a client for each connection.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """check_identity: a peer's certificate must also name its node id, as subject alternative name
    or common name. While this is off, any certificate of the authority may speak for any node.
    """

    certificate: Path
    key: Path
    authority: Path
    server_name: str = "exo-node"
    check_identity: bool = False

    def read(self) -> tuple[bytes, bytes, bytes]:
        """Certificate chain, key and authority. Raises `OSError` naming the file, and `ValueError`
        where it is not PEM.
        """
        contents = []
        for path in (self.certificate, self.key, self.authority):
            data = path.read_bytes()
            if b"-----BEGIN " not in data:
                raise ValueError(f"{path}: not a PEM file")
            contents.append(data)
        return contents[0], contents[1], contents[2]

    def stamp(self) -> tuple[tuple[int, int, int], ...]:
        """Changes whenever a file is replaced or rewritten."""
        stats = [path.stat() for path in (self.certificate, self.key, self.authority)]
        return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)


def client_credentials(files: TlsFiles) -> Any:
    chain, key, authority = files.read()
    return grpc.ssl_channel_credentials(
        root_certificates=authority, private_key=key, certificate_chain=chain
    )


def server_credentials(files: TlsFiles) -> Any:
    """Credentials that demand a client certificate and follow the files."""
    stamp = files.stamp()
    return grpc.dynamic_ssl_server_credentials(
        _configuration(files), _Reloader(files, stamp), require_client_authentication=True
    )


def names_in(auth_context: dict[str, list[bytes]]) -> set[str]:
    """The names in a peer's verified certificate."""
    found = (
        *auth_context.get("x509_subject_alternative_name", ()),
        *auth_context.get("x509_common_name", ()),
    )
    return {name.decode("utf-8", "replace") for name in found}


def _configuration(files: TlsFiles) -> Any:
    chain, key, authority = files.read()
    return grpc.ssl_server_certificate_configuration([(key, chain)], authority)


class _Reloader:
    """gRPC calls it at each handshake, in a thread of its own. None: keep the present
    certificates.
    """

    def __init__(self, files: TlsFiles, stamp: tuple[tuple[int, int, int], ...]) -> None:
        self._files = files
        self._stamp = stamp

    def __call__(self) -> Any:
        try:
            stamp = self._files.stamp()
            if stamp == self._stamp:
                return None
            fresh = _configuration(self._files)
        except (OSError, ValueError) as error:
            log.warning("certificates not reloaded, the earlier ones stay: %s", error)
            return None
        self._stamp = stamp
        log.info("certificates reloaded from %s", self._files.certificate)
        return fresh
