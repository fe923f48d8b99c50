"""How the terminal commands ask a running node, over HTTP. A failure says what to do about it."""

from __future__ import annotations

from typing import Any

import httpx

from exo.cli.failures import USAGE, Failure


def connect(url: str, api_key: str | None, *, timeout: float | None = 5.0) -> httpx.Client:
    if not url.startswith(("http://", "https://")):
        raise Failure(f"--url: {url!r} should start with http:// or https://", USAGE)
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return httpx.Client(base_url=url.rstrip("/"), headers=headers, timeout=timeout)


def ask(client: httpx.Client, path: str) -> dict[str, Any]:
    try:
        answer = client.get(path)
    except httpx.HTTPError as error:
        raise unreachable(client, error) from error
    check(answer)
    return dict(answer.json())


def unreachable(client: httpx.Client, error: Exception) -> Failure:
    reason = str(error) or type(error).__name__
    return Failure(
        f"no node answers at {client.base_url} ({reason}); start one with `exo serve`, or give"
        " --url"
    )


def check(answer: httpx.Response) -> None:
    """Raise `Failure` with the node's own message if it answered with an error. The body must have
    been read.
    """
    if answer.status_code == 401:
        if "authorization" in answer.request.headers:
            raise Failure(
                "the node asks for another API key than the one in --api-key or EXO_API_KEY"
            )
        raise Failure("the node asks for an API key: give --api-key or set EXO_API_KEY")
    if answer.status_code >= 400:
        try:
            message = answer.json()["error"]["message"]
        except (ValueError, KeyError, TypeError):
            message = answer.text[:200]
        raise Failure(f"{answer.request.url.path}: {answer.status_code}: {message}")
