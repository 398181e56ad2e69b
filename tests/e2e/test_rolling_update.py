"""A service's pods are replaced by those of another image while it serves, and it loses nothing.

One load for an update that fails, is taken back, and one that succeeds.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
from driven_lab import Cluster
from outside import run_pods, settle

from bench.wrk import loading, together
from podlane.api.types import ReplicationController
from podlane.cli.rollout import ANNOTATIONS
from podlane.lab.images import WEB_IMAGE
from podlane.runtime.command import CommandError, run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NEXT_IMAGE = "podlane/web:next"
PODS = 3


@pytest.fixture
def web(service_lab: Cluster) -> Iterator[Cluster]:
    """The web pods, and their image under a second name on every node."""
    for host in service_lab.nodes:
        run([*_docker(service_lab, host.name), "tag", WEB_IMAGE, NEXT_IMAGE], timeout=30)
    run_pods(service_lab, PODS)
    yield service_lab
    for host in service_lab.nodes:
        run([*_docker(service_lab, host.name), "rmi", "--no-prune", NEXT_IMAGE], timeout=30, check=False)
    service_lab.podlane("delete", "rc", "--all", "--cascade=foreground")


def _docker(lab: Cluster, host: str) -> list[str]:
    return ["docker", "-H", f"unix://{lab.topology.docker_socket(host)}"]


def images(lab: Cluster) -> set[str]:
    return {pod.spec.containers[0].image for pod in lab.ready()}


def controllers(lab: Cluster) -> list[ReplicationController]:
    listed = msgspec.json.decode(lab.podlane("get", "rc", "-o", "json"))["items"]
    return msgspec.convert(listed, list[ReplicationController])


def update(lab: Cluster, *arguments: str) -> str:
    return lab.lab.podlane("rolling-update", "web", *arguments, timeout=120)


def test_an_update_under_load_loses_nothing_nor_does_one_that_is_taken_back(web: Cluster) -> None:
    sources = {host.name: web.topology.netns(host) for host in web.nodes}
    with loading(sources, f"http://{web.address()}/", connections=1) as running:
        with pytest.raises(CommandError, match="paused with 0 of 3 pods") as failed:
            # from a registry that refuses at once: how long a name is looked up in vain is the machine's affair
            update(web, "--image=127.0.0.1:1/podlane/none:1", "--timeout=6s", "--max-surge=100%")
        assert "podlane/none:1" in str(failed.value) or "Image" in str(failed.value)
        assert len(web.ready()) == PODS
        assert update(web, "--rollback") == "replicationcontroller/web rolled back\n"
        assert images(web) == {WEB_IMAGE}
        assert update(web, f"--image={NEXT_IMAGE}", "--max-surge=2") == (
            'replicationcontroller/web rolling updated to "web"\n'
        )
        settle(web, PODS)
    assert images(web) == {NEXT_IMAGE}
    (left,) = controllers(web)
    assert (left.metadata.name, left.status.available_replicas) == ("web", PODS)
    assert not left.metadata.annotations.keys() & set(ANNOTATIONS)
    load = together(running.loads)
    assert load.requests > PODS
    assert load.failed == 0, load
