"""A client of the e2e tests: one streamed answer, read in a thread while the test does something to
the cluster.
"""

from __future__ import annotations

import json
import threading
import urllib.request
from typing import Any

from questions import chat


class Stream(threading.Thread):
    """`text` so far, `finish` reason, `error` event if one came, `done` after [DONE]. `flowing`:
    set in mid-answer.
    """

    def __init__(self, url: str, tokens: int) -> None:
        super().__init__(daemon=True)
        self.url, self.tokens = url, tokens
        self.text, self.finish, self.error, self.done = "", "", "", False
        self.flowing = threading.Event()

    def run(self) -> None:
        body = chat(stream=True, max_tokens=self.tokens, ignore_eos=True)
        request = urllib.request.Request(
            f"{self.url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            for raw in response:
                line = raw.decode().strip()
                if line == "data: [DONE]":
                    self.done = True
                elif line.startswith("data: "):
                    self._take(json.loads(line.removeprefix("data: ")))

    def _take(self, event: dict[str, Any]) -> None:
        self.error = self.error or str(event.get("error") or "")
        for choice in event.get("choices", []):
            self.text += choice["delta"].get("content") or ""
            self.finish = choice.get("finish_reason") or self.finish
        if len(self.text) > 40:
            self.flowing.set()
