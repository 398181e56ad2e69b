"""One lab of three hosts for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from driven_lab import Cluster, assert_nothing_left

from podlane.lab import process
from podlane.lab.topology import Topology


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    topology = Topology(f"e2e{os.getpid() % 10000}", nodes=3)
    made = Cluster(topology)
    try:
        made.lab.up()
        yield made
    finally:
        made.lab.down()
        assert_nothing_left(topology)


@pytest.fixture
def web(cluster: Cluster) -> Cluster:
    """The cluster with four web replicas behind the service."""
    cluster.run_web(4)
    return cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test shows the end of every daemon's log."""
    report = yield
    made = getattr(item, "funcargs", {}).get("cluster")
    if report.when == "call" and report.failed and isinstance(made, Cluster):
        for log in sorted(made.topology.log_dir.glob("*/*.log")):
            report.sections.append((f"{log.parent.name} {log.name}", process.tail(log, 12)))
    return report
