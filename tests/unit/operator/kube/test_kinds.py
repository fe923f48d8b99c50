"""The table of kinds, and who follows it."""

from __future__ import annotations

from exo_operator import settings
from exo_operator.api import crds, names
from exo_operator.exocluster import objects as cluster_objects
from exo_operator.exonode import objects
from exo_operator.exonode import pod as pods
from exo_operator.kube import kinds

from ..builders import DEFAULTS, exonode, node_ref
from ..cluster_builders import exocluster_of

WATCHED = {kind.name for kind in kinds.WATCHED}


def test_every_object_that_the_operator_applies_is_of_a_watched_kind() -> None:
    node = node_ref(
        exonode(
            spec={
                "model": {"name": "smollm2-135m"},
                "storage": {"size": "1Gi"},
                "networkPolicy": {"enabled": True},
            }
        )
    )
    exocluster = exocluster_of()
    budget = cluster_objects.disruption_budget(exocluster, stopped=False)
    assert budget is not None
    applied = [
        *objects.desired(node, DEFAULTS),
        pods.pod(node, DEFAULTS),
        cluster_objects.node(exocluster, 0, stopped=False),
        cluster_objects.service(exocluster),
        budget,
    ]
    assert {manifest["kind"] for manifest in applied} == WATCHED - {names.KIND_CLUSTER}
    for manifest in applied:
        kind = kinds.BY_NAME[manifest["kind"]]
        api_version = f"{kind.group}/{kind.version}" if kind.group else kind.version
        assert manifest["apiVersion"] == api_version


def test_the_custom_kinds_are_those_of_the_definitions() -> None:
    defined = {crd["spec"]["names"]["kind"] for crd in (crds.node_crd(), crds.cluster_crd())}
    assert set(kinds.CUSTOM) == set(names.PLURALS) == defined


def test_an_owner_is_listed_before_what_it_owns() -> None:
    assert kinds.CUSTOM == (names.KIND_CLUSTER, names.KIND_NODE)
    assert [kind.name for kind in kinds.WATCHED][:2] == list(kinds.CUSTOM)


def test_kopf_watches_all_custom_resources_and_of_other_kinds_only_our_objects() -> None:
    selectors = settings.for_kopf().watching.label_selectors
    for kind in kinds.WATCHED:
        found = selectors.get((kind.group, kind.version, kind.plural))
        assert found == (None if kind.is_custom else names.MANAGED_SELECTOR), kind.name


def test_secrets_are_created_and_nothing_else() -> None:
    assert kinds.BY_NAME["Secret"].verbs == ("create",)
