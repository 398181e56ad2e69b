"""The replication core knows no kind: one made up here runs through the same core as replication controllers do."""

from __future__ import annotations

import random
from typing import ClassVar

import pytest
from msgspec.structs import replace
from scheduler_objects import T0, template

from podlane.api.meta import controller_of, is_pod_active, namespaced_name, owner_reference
from podlane.api.types import Object, ObjectMeta, PodTemplateSpec
from scheduler import replication
from scheduler.kinds import Kind, Outcome
from scheduler.ownership import Ownership
from scheduler.replication import Owner
from scheduler.view import Changes

pytestmark = pytest.mark.unit


class Crew(Object, frozen=True, kw_only=True):
    """One worker for each task; its status is a sentence."""

    KIND: ClassVar[str] = "Crew"
    API_VERSION: ClassVar[str] = "sea.example/v1"
    tasks: tuple[str, ...] = ()
    worker: PodTemplateSpec = PodTemplateSpec()
    status: str = ""


def crew_of(crew: Crew) -> Owner:
    return Owner(
        reference=owner_reference(crew),
        namespace=crew.metadata.namespace,
        selector=crew.worker.metadata.labels,
        replicas=len(crew.tasks),
        template=crew.worker,
    )


def with_sentence(crew: Crew, outcome: Outcome) -> Crew | None:
    status = f"{outcome.counts.replicas} of {len(crew.tasks)}"
    return None if status == crew.status else replace(crew, status=status)


CREW = Kind(Crew, crew_of, with_sentence)


def test_a_made_up_kind_runs_through_the_same_core():
    meta = ObjectMeta(name="argo", namespace="sea", uid="uid-argo")
    crew = Crew(kind="Crew", api_version=Crew.API_VERSION, metadata=meta, tasks=("row", "steer"), worker=template())
    index, pods = Ownership(), {}

    def sync() -> str:
        nonlocal crew
        index.see_owners(CREW.cls.KIND, Changes({"sea/argo": CREW.owner_of(crew)}))
        index.see_pods(Changes(pods, complete=True))
        plan = replication.plan([index.share("uid-argo")], now=T0, rng=random.Random(1), taken=index.names)
        pods.update({namespaced_name(p): p for p in plan.create})
        for removal in plan.delete:
            del pods[namespaced_name(removal.pod)]
        crew = CREW.with_outcome(crew, Outcome(plan.counts["uid-argo"], None, T0)) or crew
        return ", ".join(f"{bucket} {size}" for bucket, size in plan.sizes().items())

    assert sync() == "create 2"
    assert sync() == ""
    assert crew.status == "2 of 2"
    assert {controller_of(p).kind for p in pods.values()} == {"Crew"}
    crew = replace(crew, tasks=("steer",))
    assert sync() == "delete 1"
    assert sum(map(is_pod_active, pods.values())) == 1
