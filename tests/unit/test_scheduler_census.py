"""What the leader tells of the cluster in figures."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from scheduler_objects import node, pod, rc
from scheduler_world import Scheduler, Stored

from podlane.api.types import Pod, ReplicationControllerStatus
from podlane.runtime import metrics
from scheduler import census_loop
from scheduler.census_loop import CensusLoop

pytestmark = pytest.mark.unit

FIGURES = {
    "nodes ready": ("podlane_nodes", {"condition": "Ready", "status": "True"}),
    "nodes unknown": ("podlane_nodes", {"condition": "Ready", "status": "Unknown"}),
    "cordoned": ("podlane_nodes_cordoned", {}),
    "pending": ("podlane_pods", {"phase": "Pending"}),
    "running": ("podlane_pods", {"phase": "Running"}),
    "failed": ("podlane_pods", {"phase": "Failed"}),
    "unscheduled": ("podlane_pods_unscheduled", {}),
    "not ready": ("podlane_pods_not_ready", {}),
    "wanted": ("podlane_replicas_wanted", {}),
    "replicas ready": ("podlane_replicas_ready", {}),
    "short": ("podlane_controllers_short", {}),
}


def figures() -> dict[str, float | None]:
    """All that are not 0; None for one that is not shown."""
    found = {name: metrics.value(full, **labels) for name, (full, labels) in FIGURES.items()}
    return {name: figure for name, figure in found.items() if figure != 0}


@pytest.fixture
def cluster() -> Stored:
    census_loop.forget()
    stored = Stored()
    for each in (
        node("n1"),
        node("n2", ready="Unknown", cordoned=True),
        pod("a", node="n1", ready=True),
        pod("b", node="n1", phase="Running"),
        pod("ends", node="n1", phase="Running"),
        pod("waits"),
        pod("starts", node="n1"),
        rc("whole", 1, status=ReplicationControllerStatus(replicas=1, ready_replicas=1)),
        rc("short", 3, status=ReplicationControllerStatus(replicas=3, ready_replicas=1)),
    ):
        stored.registry.create(each)
    stored.registry.delete(Pod, "default", "ends", grace_seconds=30)
    return stored


def test_what_is_counted_and_that_it_goes_with_the_leadership(cluster: Stored) -> None:
    scheduler = Scheduler(cluster.store, cluster.clock)
    census = CensusLoop(scheduler.context)
    census.sync()
    all_of_it = {
        "nodes ready": 1,
        "nodes unknown": 1,
        "cordoned": 1,
        "pending": 2,
        "running": 3,
        "unscheduled": 1,
        "not ready": 1,
        "wanted": 4,
        "replicas ready": 2,
        "short": 1,
    }
    assert figures() == all_of_it
    assert scheduler.wakes == [("census", census_loop.COUNT_SECONDS)]

    ready = cluster.registry.get(Pod, "default", "b")
    cluster.registry.update(replace(ready, status=replace(ready.status, phase="Failed")))
    cluster.registry.delete(Pod, "default", "waits", grace_seconds=0)
    scheduler.drain()
    census.sync()
    changed = {"pending": 1, "running": 2, "failed": 1, "unscheduled": 0, "not ready": 0}
    assert figures() == {name: count for name, count in (all_of_it | changed).items() if count}

    census_loop.forget()
    assert set(figures().values()) == {None}
