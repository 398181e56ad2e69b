"""What a pod needs from the store and from its node before its containers are made: states in, steps out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from agent_objects import Host, container, name, pod

from podlane.api.types import (
    ConfigMap,
    ConfigMapEnvSource,
    ConfigMapVolumeSource,
    EnvFromSource,
    HostAlias,
    HostPathVolumeSource,
    ObjectMeta,
    Pod,
    PodSecurityContext,
    Volume,
    VolumeMount,
)
from scheduler.agent.references import Known, Ref, Services

pytestmark = pytest.mark.unit

CM = Ref(ConfigMap, "default", "cm")
FROM_CM = (EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),)
MISSING = 'MountVolume.SetUp failed for volume "v" : configmap "cm" not found'


def config_map(version: str = "1", **data: str) -> ConfigMap:
    return ConfigMap(metadata=ObjectMeta(name="cm", namespace="default", resource_version=version), data=data)


def mounting(**mount: Any) -> Pod:
    volume = Volume(name="v", config_map=ConfigMapVolumeSource(name="cm"))
    return pod("p", container(volume_mounts=(VolumeMount(name="v", mount_path="/v", **mount),)), volumes=(volume,))


def steps(host: Host) -> list[str]:
    """The first word of each step, or what it does to a volume."""
    found = []
    for step in host.look().pods[0].steps:
        words = str(step).split()
        found.append(" ".join(words[:2]) if words[0] == "docker" else words[0])
    return found


# --- volumes ---------------------------------------------------------------------------------------


def test_volumes_are_set_up_before_anything_is_made() -> None:
    host = Host(mounting())
    host.known = Known({CM: config_map(a="1")})
    assert steps(host) == [
        "write", "docker create", "docker start", "ip", "echo", "install", "docker create", "docker start",
    ]  # fmt: skip
    host.settle()
    assert host.running() == ["web/p#0"]
    assert host.look().summary() == "keep=1"


def test_a_part_of_a_volume_is_bound_before_each_attempt() -> None:
    host = Host(mounting(sub_path="a"))
    host.known = Known({CM: config_map(a="1")})
    host.sync()
    host.runtime.end(name("web", "p"), 1)
    assert steps(host) == ["echo", "install", "mount", "docker create", "docker start"]


@pytest.mark.parametrize(
    ("known", "message"),
    [
        (Known(), 'configmap "cm" is not read from the store yet'),
        (Known({CM: None}), f"FailedMount: {MISSING}"),
    ],
)
def test_nothing_is_made_while_a_volume_is_missing(known: Known, message: str) -> None:
    host = Host(mounting())
    host.known = known
    plan = host.look()
    assert (plan.summary(), plan.pods[0].waiting["web"]) == ("wait=1", ("ContainerCreating", message))
    host.known = Known({CM: config_map(a="1")})
    host.sync()
    assert host.running() == ["web/p#0"]


def test_news_reach_a_running_pod_and_restart_nothing() -> None:
    host = Host(mounting())
    host.known = Known({CM: config_map(a="1")})
    host.settle()
    calls = list(host.runtime.calls)
    host.known = Known({CM: config_map("2", a="2", b="3")})
    assert steps(host) == ["write"]
    assert host.look().summary() == "keep=1"
    host.settle()
    assert steps(host) == []
    assert host.runtime.calls == calls
    assert next(iter(host.files.written.values())).endswith("a(0644) b(0644)")


def test_a_running_pod_keeps_what_it_had_when_the_object_is_gone_also_for_its_next_attempt() -> None:
    host = Host(mounting())
    host.known = Known({CM: config_map(a="1")})
    host.settle()
    host.known = Known({CM: None})
    assert host.look().summary() == "keep=1"
    host.restart_agent()
    host.known = Known()
    host.runtime.end(name("web", "p"), 1)
    host.sync()
    assert host.running() == ["web/p#1"]


def test_an_agent_that_remembers_nothing_makes_sure_of_the_volumes_and_restarts_nothing() -> None:
    host = Host(mounting())
    host.known = Known({CM: config_map(a="1")})
    host.settle()
    calls = list(host.runtime.calls)
    host.restart_agent()
    assert steps(host) == ["write"]
    host.settle()
    assert (steps(host), host.runtime.calls) == ([], calls)


def test_a_volume_that_cannot_be_set_up_is_told_and_tried_again() -> None:
    path = HostPathVolumeSource(path="/srv", type="Directory")
    host = Host(pod("p", volumes=(Volume(name="v", host_path=path),)))
    host.files.unmountable["v"] = "hostPath type check failed: /srv is not a directory"
    host.sync()
    text = 'MountVolume.SetUp failed for volume "v" : hostPath type check failed: /srv is not a directory'
    assert (host.all_running(), host.told.events) == ([], [f"p: FailedMount {text}"])
    plan = host.look()
    assert plan.pods[0].waiting["web"] == ("ContainerCreating", text)
    assert plan.wake_at == host.clock.now() + 1
    host.clock.advance(1)
    host.sync()
    assert host.look().wake_at == host.clock.now() + 2
    host.files.unmountable.clear()
    host.clock.advance(2)
    host.sync()
    assert host.running() == ["web/p#0"]


def test_news_that_cannot_be_written_leave_a_running_pod_alone_and_are_tried_again() -> None:
    host = Host(mounting())
    host.known = Known({CM: config_map(a="1")})
    host.settle()
    host.known = Known({CM: config_map("2", a="2")})
    host.files.unmountable["v"] = "No space left on device"
    host.sync()
    plan = host.look()
    assert (plan.summary(), plan.wake_at) == ("keep=1", host.clock.now() + 1)
    assert host.running() == ["web/p#0"]
    host.files.unmountable.clear()
    host.clock.advance(1)
    assert steps(host) == ["write"]


# --- the environment ------------------------------------------------------------------------------------


def test_a_missing_config_map_keeps_its_container_waiting_and_no_other() -> None:
    host = Host(pod("p", container(env_from=FROM_CM), container("side")))
    host.known = Known({CM: None})
    plan = host.sync()
    assert plan.pods[0].waiting["web"] == ("CreateContainerConfigError", 'configmap "cm" not found')
    assert host.running() == ["side/p#0"]
    assert host.look().wake_at is None  # the object is watched, so nothing needs to be tried
    host.known = Known({CM: config_map(A="1")})
    host.sync()
    assert host.running() == ["side/p#0", "web/p#0"]


def test_a_changed_config_map_changes_no_hash() -> None:
    host = Host(pod("p", container(env_from=FROM_CM)))
    host.known = Known({CM: config_map(A="1")})
    host.settle()
    host.known = Known({CM: config_map("2", A="2")})
    assert host.look().summary() == "keep=1"


def test_services_must_be_known_before_a_container_is_made() -> None:
    host = Host(pod("p"))
    host.known = Known(services={})
    assert host.look().pods[0].waiting["web"] == ("ContainerCreating", "")
    host.known = Known(services={"default": Services(links={"WEB_SERVICE_HOST": "10.96.0.7"})})
    assert "--env WEB_SERVICE_HOST=10.96.0.7" in str(host.look())


# --- rights and the node's network ----------------------------------------------------------------------


def test_an_image_that_runs_as_root_where_that_is_forbidden() -> None:
    host = Host(pod("p", security_context=PodSecurityContext(run_as_non_root=True)))
    why = ("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
    assert host.sync().pods[0].waiting["web"] == why
    host.runtime.users["web:1"] = "1000"
    host.memory.forget_images()
    host.sync()
    assert host.running() == ["web/p#0"]


def test_a_pod_on_the_nodes_network_needs_no_other() -> None:
    host = Host(pod("p", host_network=True, host_aliases=(HostAlias(ip="10.1.2.3", hostnames=("db", "db.local")),)))
    host.network = "no subnet yet"
    plan = str(host.look())
    assert "docker create --name podlane_POD_p_default_uid-p_0 --network host " in plan
    assert "ip link" not in plan
    assert "cp /etc/hosts /var/lib/podlane/agent/pods/uid-p/hosts" in plan
    assert "10.1.2.3\tdb\tdb.local" in plan
    host.settle()
    assert host.running() == ["web/p#0"]
    assert host.look().summary() == "keep=1"


def test_the_hosts_file_has_the_pods_aliases() -> None:
    host = Host(pod("p", host_aliases=(HostAlias(ip="10.1.2.3", hostnames=("db",)),)))
    host.sync()
    assert list(host.files.written.values()) == ["10.5.3.2 p 10.1.2.3\tdb"]


def test_relabelling_a_pod_touches_nothing() -> None:
    mine = mounting()
    host = Host(mine)
    host.known = Known({CM: config_map(a="1")})
    host.settle()
    meta = msgspec.structs.replace(mine.metadata, labels={"new": "yes"})
    host.pods = {"uid-p": msgspec.structs.replace(mine, metadata=meta)}
    assert host.look().summary() == "keep=1"
    assert steps(host) == []
