"""A Hugging Face hub on loopback, as far as downloads need one, with faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34
_FILE = re.compile(r"/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_INFO = re.compile(r"/api/models/(?P<repo>[^/]+/[^/]+?)(/revision/(?P<revision>[^/?]+))?")


@dataclass
class Hub:
    """files: what repository `owner/model` has. faults: per file name, what its next GETs meet, in
    turn.

    A fault is a status ("429", "503"), "cut" (half of it, then the connection breaks), "wrong"
    (bytes of the same length), "late" (a pause before the rest) or "stall" (the rest never comes).
    token: ask for this one.
    retry_after: what a 429 says. commit: what it says that the model's is. gone: set when the
        server ends.
    """

    files: dict[str, bytes]
    faults: dict[str, list[str]] = field(default_factory=dict)
    token: str | None = None
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""
    retry_after: str = "0"
    commit: str = COMMIT
    gone: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> set[str]:
        return {line.partition(" ")[2] for line in self.requests if line.startswith("GET ")}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    thread = threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    )
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        hub.gone.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            if hub.token is not None and self.headers.get("Authorization") != f"Bearer {hub.token}":
                return self._error(401, "GatedRepo")
            path = self.path.partition("?")[0]
            if info := _INFO.fullmatch(path):
                return self._info(info)
            if file := _FILE.fullmatch(path):
                return self._file(file["repo"], file["revision"], file["name"], body)
            return self._error(404, "RepoNotFound")

        def _info(self, match: re.Match[str]) -> None:
            if match["repo"] != "owner/model":
                return self._error(404, "RepoNotFound")
            if match["revision"] not in (None, "main", "v1", COMMIT):
                return self._error(404, "RevisionNotFound")
            if faults := hub.faults.get("info"):
                return self._error(int(faults.pop(0)), "")
            data = json.dumps(info_of(hub)).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
            return None

        def _file(self, repo: str, revision: str, name: str, body: bool) -> None:
            if repo != "owner/model" or name not in hub.files:
                return self._error(404, "EntryNotFound")
            data = hub.files[name]
            fault = ""
            if body:
                hub.requests.append(f"GET {name}")
                faults = hub.faults.get(name)
                fault = faults.pop(0) if faults else ""
                if fault.isdigit():
                    return self._error(int(fault), "")
            start = self._start()
            if start:
                hub.ranges.append(f"{name} from {start}")
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self._send(data[start:], fault)
            return None

        def _send(self, data: bytes, fault: str) -> None:
            if fault in {"late", "stall"}:
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                data = data[len(data) // 2 :]
                if hub.gone.wait(0.1 if fault == "late" else 60):
                    return
            if fault == "cut":
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)
                return
            self.wfile.write(bytes(len(data)) if fault == "wrong" else data)

        def _start(self) -> int:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            return int(match[1]) if match else 0

        def _error(self, status: int, code: str) -> None:
            self.send_response(status)
            if code:
                self.send_header("X-Error-Code", code)
            if status == 429:
                self.send_header("Retry-After", hub.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


def info_of(hub: Hub) -> dict[str, Any]:
    def describe(name: str, data: bytes) -> dict[str, Any]:
        found: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": "0" * 40}
        if name.endswith((".safetensors", ".gguf")):
            found["lfs"] = {
                "size": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
                "pointerSize": 134,
            }
        return found

    return {
        "_id": "1",
        "id": "owner/model",
        "modelId": "owner/model",
        "sha": hub.commit,
        "private": False,
        "siblings": [describe(name, data) for name, data in hub.files.items()],
    }
