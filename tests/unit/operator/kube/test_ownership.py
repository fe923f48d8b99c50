"""Who has a name that we need."""

from __future__ import annotations

from typing import Any

import pytest
from exo_operator.api import names
from exo_operator.kube import ownership
from exo_operator.kube.actions import Conflict
from exo_operator.kube.objects import Raw, ref_of
from exo_operator.kube.ownership import Claim
from exo_operator.kube.store import Store

MANAGED = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
OURS = {"uid": "ours", "controller": True}
THEIRS = {"uid": "theirs", "controller": True}
SHARED = {"uid": "theirs", "controller": False}
GOING = {"deletionTimestamp": "2030-01-01T12:00:00Z"}


def service(*owners: Raw, **metadata: Any) -> Raw:
    named = {"name": "paris", "namespace": "default", "ownerReferences": list(owners)}
    return {"apiVersion": "v1", "kind": "Service", "metadata": named | metadata}


@pytest.mark.parametrize(
    ("live", "orphans_are_ours", "taken"),
    [
        (None, True, False),
        (service(OURS), True, False),
        (service(THEIRS), True, True),
        (service(THEIRS, **GOING), True, False),
        (service(), True, False),
        (service(SHARED), True, False),
        (service(), False, True),
        (service(SHARED), False, True),
        (service(OURS), False, False),
    ],
)
def test_a_name_is_taken_by_an_object_of_another_owner_that_stays(
    live: Raw | None, orphans_are_ours: bool, taken: bool
) -> None:
    store, ref = Store(), ref_of(service())
    if live is not None:
        store.put(live)
    found = ownership.conflicts([ref], store.pick([ref]), "ours", orphans_are_ours=orphans_are_ours)
    assert found == ((Conflict("Service", "paris"),) if taken else ())


@pytest.mark.parametrize(
    ("live", "claim"),
    [
        (service(OURS, labels=MANAGED), Claim.OURS),
        (service(OURS, labels=MANAGED, **GOING), Claim.OURS),
        (service(labels=MANAGED), Claim.OURS),
        (service(THEIRS, labels=MANAGED), Claim.TAKEN),
        (service(THEIRS, labels=MANAGED, **GOING), Claim.GOING),
        (service(), Claim.TAKEN),
        (service(**GOING), Claim.GOING),
        (service(OURS), Claim.TAKEN),
    ],
)
def test_an_object_that_no_watch_has_shown_is_ours_only_with_our_label(
    live: Raw, claim: Claim
) -> None:
    assert ownership.claim_unwatched(live, "ours") is claim


def test_a_snapshot_answers_only_for_what_was_picked() -> None:
    store = Store()
    store.put(service())
    picked = store.pick([])
    with pytest.raises(KeyError):
        picked.get(ref_of(service()))


def test_what_was_picked_stays_as_it_was() -> None:
    store, ref = Store(), ref_of(service())
    store.put(service(resourceVersion="1"))
    picked = store.pick([ref])
    store.put(service(OURS, resourceVersion="2"))
    assert picked.get(ref) == service(resourceVersion="1")
