"""A lab with both families: pods and a service with an address of each, and no request lost while pods end."""

from __future__ import annotations

import os
from collections.abc import Iterator

import msgspec
import pytest
from driven_lab import PATIENCE, Cluster, assert_nothing_left

from podlane.api.types import EndpointSlice, Service
from podlane.lab import traffic
from podlane.lab.topology import Topology
from podlane.runtime import namespace
from podlane.runtime.command import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
spec:
  ipFamilyPolicy: RequireDualStack
  selector:
    app: web
  ports:
    - port: 80
      targetPort: http
"""


@pytest.fixture(scope="module")
def dual() -> Iterator[Cluster]:
    topology = Topology(f"dual{os.getpid() % 10000}", nodes=2, dual_stack=True)
    made = Cluster(topology)
    try:
        made.lab.up()
        service = topology.run_dir / "service.yaml"
        service.write_text(SERVICE)
        made.podlane("apply", "-f", str(service))
        made.run_web(4)
        yield made
    finally:
        made.lab.down()
        assert_nothing_left(topology)


def addresses(dual: Cluster) -> tuple[str, ...]:
    listed = msgspec.json.decode(dual.podlane("get", "service", "web", "-o", "json"))
    return msgspec.convert(listed, Service).spec.cluster_ips


def test_pods_slices_and_every_node_s_connections_are_of_both_families(dual: Cluster) -> None:
    for pod in dual.ready():
        assert [":" in each.ip for each in pod.status.pod_ips] == [False, True]
    listed = msgspec.json.decode(dual.podlane("get", "endpointslices", "-o", "json"))["items"]
    slices = msgspec.convert(listed, list[EndpointSlice])
    assert sorted((s.address_type, len(s.endpoints)) for s in slices) == [("IPv4", 4), ("IPv6", 4)]
    for address in addresses(dual):
        for host in dual.nodes:
            answers = traffic.ask_from(dual.topology.netns(host), host.name, address, 80, count=60, tries=1)
            assert [a.error for a in answers if a.error] == []
            assert len({a.backend for a in answers}) == 4


def test_pods_reach_the_service_over_each_family_themselves_included(dual: Cluster) -> None:
    both, ready = addresses(dual), dual.ready()
    for pod in ready:
        docker = ["docker", "-H", f"unix://{dual.topology.docker_socket(pod.spec.node_name)}"]
        identity = pod.status.container_statuses[0].container_id.removeprefix("docker://")
        pid = int(run([*docker, "inspect", "-f", "{{.State.Pid}}", identity], timeout=20).stdout)
        with namespace.inside(namespace.of_process(pid)):
            for address in both:
                answers = [traffic.ask(pod.metadata.name, address, 80, tries=1) for _ in range(60)]
                assert [a.error for a in answers if a.error] == []
                assert {a.backend for a in answers} == {p.metadata.name for p in ready}


def test_no_request_is_lost_while_every_pod_is_replaced(dual: Cluster) -> None:
    sources = {h.name: dual.topology.netns(h) for h in dual.nodes}
    first = {p.metadata.name for p in dual.ready()}
    four, six = addresses(dual)
    with (
        traffic.Traffic(sources, four, 80, timeout=PATIENCE) as over_four,
        traffic.Traffic(sources, six, 80, timeout=PATIENCE) as over_six,
    ):
        for name in sorted(first):
            dual.podlane("delete", "pod", name)
            dual.wait("four are ready", lambda: len(dual.ready()) == 4)
        summaries = over_four.stop(), over_six.stop()
    assert not first & {p.metadata.name for p in dual.ready()}
    for summary in summaries:
        assert summary.requests > 100
        assert (summary.failed, summary.retried) == (0, 0), summary.late
