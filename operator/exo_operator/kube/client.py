"""The Kubernetes API for the rest of the operator: server-side apply, delete, status, events,
lists.

The only module beside `leader` that knows the client library. Objects go in and out as plain dicts;
answers that callers decide on are exceptions of this module.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from exo_operator.api import names
from exo_operator.kube.store import Raw

REQUEST_TIMEOUT_S = 15.0
PAGE = 500
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

# Kind -> (path prefix, plural).
KINDS: dict[str, tuple[str, str]] = {
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "PersistentVolumeClaim": ("api/v1", "persistentvolumeclaims"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Secret": ("api/v1", "secrets"),
    "Event": ("apis/events.k8s.io/v1", "events"),
    names.KIND_NODE: (f"apis/{names.API_VERSION}", names.PLURALS[names.KIND_NODE]),
    names.KIND_CLUSTER: (f"apis/{names.API_VERSION}", names.PLURALS[names.KIND_CLUSTER]),
}


class ClusterError(Exception):
    """The API server refused or could not answer. `status` is the HTTP status."""

    def __init__(self, status: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.retry_after = retry_after


class NotFound(ClusterError):
    """The object, or its kind, does not exist."""


class Conflicted(ClusterError):
    """Another object has the name, or the precondition does not hold."""


class Invalid(ClusterError):
    """The API server finds the object wrong; trying again is no use until something changes."""


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
    prefix, plural = KINDS[kind]
    parts = [prefix, *(("namespaces", namespace) if namespace else ()), plural, name, subresource]
    return "/" + "/".join(quote(part, safe="/") for part in parts if part)


class Cluster:
    """Typed calls on one ApiClient."""

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    async def close(self) -> None:
        await self._api.close()

    async def get(self, kind: str, namespace: str, name: str) -> Raw:
        """Raises NotFound."""
        return await self._call("GET", path(kind, namespace, name))

    async def apply(self, manifest: Raw) -> Raw:
        """Server-side apply under our field manager; we own the fields of our objects."""
        metadata = manifest["metadata"]
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        target = path(manifest["kind"], metadata["namespace"], metadata["name"])
        return await self._call("PATCH", target, query, manifest, "application/apply-patch+yaml")

    async def apply_status(self, obj: Raw, status: Raw) -> Raw:
        """Apply the status of exactly this object. Raises NotFound or Conflicted when it was
        deleted or replaced.
        """
        metadata = obj["metadata"]
        manifest = {
            "apiVersion": obj["apiVersion"],
            "kind": obj["kind"],
            "metadata": {
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "status": status,
        }
        query = {"fieldManager": names.FIELD_MANAGER, "force": "true"}
        target = path(obj["kind"], metadata["namespace"], metadata["name"], "status")
        return await self._call("PATCH", target, query, manifest, "application/apply-patch+yaml")

    async def set_pod_condition(self, namespace: str, name: str, uid: str, condition: Raw) -> Raw:
        """Set one condition of exactly this pod. Raises NotFound or Conflicted."""
        body = {"metadata": {"uid": uid}, "status": {"conditions": [condition]}}
        target = path("Pod", namespace, name, "status")
        return await self._call("PATCH", target, {}, body, "application/strategic-merge-patch+json")

    async def delete(
        self, kind: str, namespace: str, name: str, uid: str, grace: int | None = None
    ) -> None:
        """Delete exactly this object; it being gone already is fine."""
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
        """Whether it was made; False where there is one of that name, which stays as it is. Nothing
        reads it back.
        """
        try:
            await self._call(
                "POST", path("Secret", manifest["metadata"]["namespace"]), {}, manifest
            )
        except Conflicted:
            return False
        return True

    async def create_event(self, event: Raw) -> None:
        """Create an event of events.k8s.io/v1."""
        await self._call("POST", path("Event", event["metadata"]["namespace"]), {}, event)

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
            raise ClusterError(int(error.status or 0), str(error.reason)) from error
        if 200 <= response.status < 300:
            result: Raw = json.loads(content)
            return result
        raise _error(response.status, content, response.getheader("Retry-After"))


def _error(status: int, content: bytes, retry_after: str | None) -> ClusterError:
    try:
        message = str(json.loads(content).get("message"))
    except (ValueError, AttributeError):
        message = content[:300].decode(errors="replace")
    kinds: dict[int, type[ClusterError]] = {
        404: NotFound,
        409: Conflicted,
        422: Invalid,
        400: Invalid,
    }
    wait = float(retry_after) if retry_after and retry_after.isdigit() else None
    return kinds.get(status, ClusterError)(status, message, wait)


def event(
    regarding: Raw, *, type_: str, reason: str, action: str, note: str, at: str, instance: str
) -> Raw:
    """An event about an object. `at` is RFC 3339 with microseconds."""
    metadata: dict[str, Any] = regarding["metadata"]
    return {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{uuid.uuid4().hex[:16]}",
            "namespace": metadata["namespace"],
        },
        "type": type_,
        "reason": reason,
        "action": action,
        "note": note[:1024],
        "eventTime": at,
        "reportingController": f"{names.API_VERSION.split('/')[0]}/{names.MANAGED_BY}",
        "reportingInstance": instance[:128],
        "regarding": {
            "apiVersion": regarding["apiVersion"],
            "kind": regarding["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
    }
