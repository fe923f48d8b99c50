"""The Kubernetes API for the rest of the operator: server-side apply, delete, status, events,
lists.

Besides `leader`, the only module that knows the client library. Objects go in and out as plain
dicts; answers that callers act on are exceptions of this module.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncIterator
from urllib.parse import quote, urlencode

from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from exo import contract
from exo_operator.api import names
from exo_operator.kube import kinds
from exo_operator.kube.objects import Meta, Raw

REQUEST_TIMEOUT_S = 15.0
PAGE = 500
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class KubeError(Exception):
    """The API server refused or could not answer. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NotFound(KubeError):
    """The object, or its kind, does not exist."""


class Conflicted(KubeError):
    """Another object has the name, or the precondition does not hold."""


class Invalid(KubeError):
    """The API server finds the object wrong. Trying again does not help until something changes."""


def in_cluster() -> bool:
    return os.path.exists(f"{SERVICE_ACCOUNT}/token")


async def connect() -> client.ApiClient:
    """A client from the pod's service account, or from KUBECONFIG."""
    configuration = client.Configuration()
    if in_cluster():
        config.load_incluster_config(client_configuration=configuration)
    else:
        await config.load_kube_config(client_configuration=configuration)
    configuration.connection_pool_maxsize = 50
    return client.ApiClient(configuration)


def path(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The path of an object, a collection or a subresource."""
    found = kinds.BY_NAME[kind]
    scope = ("namespaces", namespace) if namespace else ()
    parts = [found.prefix, *scope, found.plural, name, subresource]
    return "/" + "/".join(quote(part, safe="/") for part in parts if part)


class KubeClient:
    """Typed calls on one ApiClient."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def close(self) -> None:
        await self._api.close()

    async def get(self, kind: str, namespace: str, name: str) -> Raw:
        """Raises NotFound."""
        return await self._call("GET", path(kind, namespace, name))

    async def apply(self, manifest: Raw) -> Raw:
        """Server-side apply under our field manager. The fields of our objects are ours."""
        meta = Meta(manifest)
        return await self._apply(path(manifest["kind"], meta.namespace, meta.name), manifest)

    async def apply_status(self, obj: Raw, status: Raw) -> Raw:
        """Apply the status of exactly this object. Raises NotFound or Conflicted if it was deleted
        or replaced.
        """
        meta = Meta(obj)
        manifest = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "metadata": {"name": meta.name, "namespace": meta.namespace, "uid": meta.uid},
            "status": status,
        }
        return await self._apply(path(obj["kind"], meta.namespace, meta.name, "status"), manifest)

    async def _apply(self, target: str, manifest: Raw) -> Raw:
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        return await self._call("PATCH", target, query, manifest, "application/apply-patch+yaml")

    async def set_pod_condition(self, namespace: str, name: str, uid: str, condition: Raw) -> Raw:
        """Set one condition of exactly this pod. Raises NotFound or Conflicted."""
        body = {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}
        target = path("Pod", namespace, name, "status")
        return await self._call("PATCH", target, {}, body, "application/strategic-merge-patch+json")

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        """Delete exactly this object. If it is gone already, that is fine."""
        body: Raw = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        if grace is not None:
            body["gracePeriodSeconds"] = grace
        try:
            await self._call("DELETE", path(kind, namespace, name), {}, body)
        except (NotFound, Conflicted):
            return

    async def list_all(
        self, kind: str, namespace: str = "", selector: str = ""
    ) -> AsyncIterator[Raw]:
        """All objects of a kind, page by page."""
        query = {"limit": str(PAGE)}
        if selector:
            query["labelSelector"] = selector
        while True:
            page = await self._call("GET", path(kind, namespace), query)
            api_version = page["apiVersion"]
            for item in page.get("items") or ():
                yield {"apiVersion": api_version, "kind": kind, **item}
            token = page["metadata"].get("continue")
            if not token:
                return
            query["continue"] = token

    async def create_secret(self, manifest: Raw) -> bool:
        """Create a Secret. Returns False if one of that name exists, which stays as it is. The
        operator never reads one.
        """
        try:
            await self._call("POST", path("Secret", Meta(manifest).namespace), {}, manifest)
        except Conflicted:
            return False
        return True

    async def create_event(self, event: Raw) -> None:
        """Create an event of events.k8s.io/v1."""
        await self._call("POST", path("Event", Meta(event).namespace), {}, event)

    async def _call(
        self,
        method: str,
        target: str,
        query: dict[str, str] | None = None,
        body: Raw | None = None,
        content_type: str = "application/json",
    ) -> Raw:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        method, url, headers, body, _ = await self._api.param_serialize(
            method, target, header_params=headers, body=body, auth_settings=["BearerToken"]
        )
        if query:
            url += "?" + urlencode(query)
        try:
            response = await self._api.call_api(
                method, url, headers, body, _request_timeout=REQUEST_TIMEOUT_S
            )
            content = await response.read()
        except ApiException as error:
            raise KubeError(int(error.status or 0), str(error.reason)) from error
        if 200 <= response.status < 300:
            result: Raw = json.loads(content)
            return result
        raise _error(response.status, content, response.getheader("Retry-After"))


ERRORS: dict[int, type[KubeError]] = {400: Invalid, 404: NotFound, 409: Conflicted, 422: Invalid}


def _error(status: int, content: bytes, retry_after: str | None) -> KubeError:
    try:
        message = str(json.loads(content).get("message"))
    except (ValueError, AttributeError):
        message = content[:300].decode(errors="replace")
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return ERRORS.get(status, KubeError)(status, message, wait)


def event(
    regarding: Raw, *, type_: str, reason: str, action: str, note: str, at: str, instance: str
) -> Raw:
    """An event about an object. `at` is RFC 3339 with microseconds."""
    meta = Meta(regarding)
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{meta.name}.{uuid.uuid4().hex[:16]}", "namespace": meta.namespace},
        "type": type_,
        "reason": reason,
        "action": action,
        "note": note[:1024],
        "eventTime": at,
        "reportingController": f"{contract.GROUP}/{names.MANAGED_BY}",
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": meta.name,
            "namespace": meta.namespace,
            "uid": meta.uid,
        },
    }
