"""One lab of three hosts for the whole session, and one for the tests of services."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from driven_lab import Cluster, assert_nothing_left

from podlane.lab import process
from podlane.lab.topology import Topology


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    yield from _lab(f"e2e{os.getpid() % 10000}")


@pytest.fixture(scope="session")
def service_lab() -> Iterator[Cluster]:
    """Another, whose web pods may take long to end: see outside.run_pods."""
    yield from _lab(f"svc{os.getpid() % 10000}")


def _lab(name: str) -> Iterator[Cluster]:
    topology = Topology(name, nodes=3)
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
    labs = {id(made): made for made in getattr(item, "funcargs", {}).values() if isinstance(made, Cluster)}
    for made in labs.values() if report.failed else ():
        for log in sorted(made.topology.log_dir.glob("*/*.log")):
            report.sections.append((f"{log.parent.name} {log.name}", process.tail(log, 12)))
    return report
