"""The cache: the newest version wins, and deletions hold."""

from __future__ import annotations

from typing import Any

from exo_operator.kube.store import Store
from hypothesis import given
from hypothesis import strategies as st


def service(version: int, uid: str = "u1") -> dict[str, Any]:
    metadata = {"name": "s", "namespace": "default", "uid": uid, "resourceVersion": str(version)}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"version": version},
    }


def spec(store: Store) -> Any:
    live = store.get("Service", "default", "s")
    return live and live["spec"]["version"]


def test_an_older_version_never_replaces_a_newer_one() -> None:
    store = Store()
    assert store.put(service(10))
    assert not store.put(service(9))
    assert not store.put(service(10))
    assert store.put(service(11))
    assert spec(store) == 11


def test_a_late_answer_does_not_bring_a_deleted_object_back() -> None:
    store = Store()
    store.put(service(10))
    store.remove(service(12))
    assert not store.put(service(11))
    assert spec(store) is None
    assert store.put(service(13, uid="u2"))


def test_the_deletion_of_an_earlier_object_leaves_its_namesake() -> None:
    store = Store()
    store.put(service(20, uid="u2"))
    store.remove(service(15, uid="u1"))
    assert spec(store) == 20


def test_deletions_are_remembered_for_a_while_only() -> None:
    now = [0.0]
    store = Store(clock=lambda: now[0])
    for number in range(100):
        now[0] = number * 100.0
        store.remove(service(number, uid=f"u{number}"))
    assert store.put(service(1, uid="u0"))
    assert not store.put(service(1, uid="u99"))


def test_what_we_wrote_is_still_news_when_the_watch_brings_it_once() -> None:
    store = Store()
    store.put(service(10))
    assert store.put(service(10), watched=True)
    assert not store.put(service(10), watched=True)
    assert not store.put(service(9), watched=True)


@given(st.lists(st.integers(1, 50), max_size=30))
def test_whatever_the_order_the_newest_stays(versions: list[int]) -> None:
    store = Store()
    for version in versions:
        store.put(service(version))
    assert spec(store) == (max(versions) if versions else None)


def test_field_managers_are_not_kept() -> None:
    store = Store()
    fat = service(1)
    fat["metadata"]["managedFields"] = [{"manager": "kubectl"}]
    store.put(fat)
    live = store.get("Service", "default", "s")
    assert live is not None
    assert "managedFields" not in live["metadata"]
    assert "managedFields" in fat["metadata"]
