"""From a pod to container configurations: hashes that last, limits, rights, and what is said to Docker."""

from __future__ import annotations

from typing import Any

import pytest
from agent_objects import container, pod

from podlane.api.types import (
    Capabilities,
    ConfigMapEnvSource,
    Container,
    ContainerPort,
    EnvFromSource,
    EnvVar,
    HTTPGetAction,
    Pod,
    PodSecurityContext,
    Probe,
    ResourceRequirements,
    SecurityContext,
    VolumeMount,
)
from scheduler.agent.actions import Create
from scheduler.agent.containers import container_config, infra_config, limits, oom_score_adj, spec_hash
from scheduler.agent.dockerforms import container_body
from scheduler.agent.environment import ConfigError
from scheduler.agent.runtime import Security
from scheduler.agent.security import needs_image_user, security

pytestmark = pytest.mark.unit

GB = 1024**3
PLAIN = Container(name="web", image="web:1")
FULL = Container(
    name="web",
    image="web:1",
    command=("sh", "-c"),
    args=("serve $(PORT)",),
    working_dir="/srv",
    env=(EnvVar(name="PORT", value="80"), EnvVar(name="EMPTY")),
    ports=(ContainerPort(container_port=80, name="http"), ContainerPort(container_port=53, protocol="UDP")),
    resources=ResourceRequirements(requests={"cpu": "100m"}, limits={"memory": "64Mi", "cpu": "1"}),
    readiness_probe=Probe(http_get=HTTPGetAction(port="http")),
    image_pull_policy="IfNotPresent",
)


def given(**changes: Any) -> Container:
    return container(**changes)


def resources(requests: dict[str, str] | None = None, **limited: str) -> ResourceRequirements:
    return ResourceRequirements(requests=requests or {}, limits=limited)


# --- the hash --------------------------------------------------------------------------------------


def test_the_hash_is_that_of_the_version_without_volumes() -> None:
    """Computed by commit 97e2163: an upgrade restarts nothing that runs."""
    assert (spec_hash(PLAIN), spec_hash(FULL)) == ("efafc87e09354a48", "f2739701c574c7ce")


def test_a_change_of_what_runs_changes_the_hash_and_a_probe_does_not() -> None:
    before = spec_hash(given())
    probe = Probe(http_get=HTTPGetAction(port=80))
    assert spec_hash(given(startup_probe=probe, liveness_probe=probe, readiness_probe=probe)) == before
    changes: tuple[dict[str, Any], ...] = (
        {"image": "web:2"},
        {"env_from": (EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),)},
        {"volume_mounts": (VolumeMount(name="v", mount_path="/v"),)},
        {"security_context": SecurityContext(privileged=True)},
    )
    assert len({before, *(spec_hash(given(**change)) for change in changes)}) == 5


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "shares", "quota", "memory"),
    [
        (resources(), 2, 0, 0),
        (resources({"cpu": "1m"}), 2, 0, 0),
        (resources({"cpu": "250m"}), 256, 0, 0),
        (resources(cpu="500m", memory="64Mi"), 512, 50_000, 64 * 1024**2),
        (resources({"cpu": "100m"}, cpu="1m"), 102, 1_000, 0),
        (resources({"cpu": "1000"}), 262_144, 0, 0),
    ],
)
def test_requests_and_limits_as_cgroup_settings(
    asked: ResourceRequirements, shares: int, quota: int, memory: int
) -> None:
    found = limits(given(resources=asked))
    assert (found.cpu_shares, found.cpu_quota, found.memory) == (shares, quota, memory)


@pytest.mark.parametrize(
    ("asked", "score"),
    [
        (resources(), 1000),
        (resources({"cpu": "1", "memory": "1Gi"}, cpu="1", memory="1Gi"), -997),
        (resources({"memory": "1Gi"}), 875),
        (resources({"memory": "8Gi"}), 3),
        (resources({"cpu": "1m"}), 999),
    ],
)
def test_who_is_ended_first_when_memory_is_short(asked: ResourceRequirements, score: int) -> None:
    ct = given(resources=asked)
    assert oom_score_adj(pod("p", ct), ct, 8 * GB) == score


# --- rights -------------------------------------------------------------------------------------------


def secured(pod_context: PodSecurityContext | None = None, **own: Any) -> tuple[Pod, Container]:
    ct = given(security_context=SecurityContext(**own) if own else None)
    return pod("p", ct, security_context=pod_context), ct


def test_a_containers_context_wins_over_its_pods() -> None:
    whole = PodSecurityContext(run_as_user=1000, run_as_group=3000, fs_group=2000, supplemental_groups=(5, 2000))
    assert security(*secured(whole)) == Security(user="1000:3000", groups=("5", "2000"))
    assert security(*secured(whole, run_as_user=0)).user == "0:3000"
    assert security(*secured(None)) == Security()


def test_a_group_alone_goes_with_the_images_user() -> None:
    alone = secured(None, run_as_group=3000)
    assert needs_image_user(*alone)
    assert security(*alone, "app:app").user == "app:3000"
    assert security(*alone, "").user == "0:3000"


@pytest.mark.parametrize(
    ("own", "image_user", "text"),
    [
        ({"run_as_user": 0}, "", "container's runAsUser breaks non-root policy"),
        ({}, "", "container has runAsNonRoot and image will run as root"),
        ({}, "0:5", "container has runAsNonRoot and image will run as root"),
        (
            {},
            "app",
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is non-root",
        ),
    ],
)
def test_what_must_not_be_root_is_refused_if_it_is_or_cannot_be_told(
    own: dict[str, Any], image_user: str, text: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        security(*secured(PodSecurityContext(run_as_non_root=True), **own), image_user)
    assert str(raised.value) == text


def test_what_is_not_root_may_run() -> None:
    strict = PodSecurityContext(run_as_non_root=True)
    assert security(*secured(strict), "1000").user == ""
    assert security(*secured(strict, run_as_user=7)).user == "7"
    assert security(*secured(strict, run_as_non_root=False)).user == ""


# --- in Docker's words ------------------------------------------------------------------------------------


def test_rights_in_dockers_words() -> None:
    whole = PodSecurityContext(supplemental_groups=(5,))
    mine, ct = secured(
        whole, run_as_user=7, privileged=True, read_only_root_filesystem=True, allow_privilege_escalation=False,
        capabilities=Capabilities(add=("NET_ADMIN",), drop=("ALL",)),
    )  # fmt: skip
    config = container_config(mine, ct, "infra", 0, 0, security=security(mine, ct))
    body = container_body(config)
    host = body["HostConfig"]
    assert body["User"] == "7"
    assert {name: host[name] for name in host if name not in {"CpuShares", "LogConfig", "RestartPolicy"}} == {
        "NetworkMode": "container:infra",
        "OomScoreAdj": 1000,
        "Privileged": True,
        "ReadonlyRootfs": True,
        "CapAdd": ["NET_ADMIN"],
        "CapDrop": ["ALL"],
        "GroupAdd": ["5"],
        "SecurityOpt": ["no-new-privileges"],
    }
    assert str(Create("web", config)).endswith(
        "--user 7 --group-add 5 --cap-add NET_ADMIN --cap-drop ALL --privileged --read-only "
        "--security-opt=no-new-privileges web:1"
    )


def test_an_infra_container_on_the_nodes_network_has_no_address() -> None:
    config = infra_config(pod("p", host_network=True), 0, "")
    assert (config.network, config.hostname) == ("host", "")
    assert config.labels["podlane.io/host-network"] == "true"
    assert "podlane.io/pod-ip" not in config.labels
    body = container_body(config)
    assert (body["HostConfig"]["NetworkMode"], body.get("NetworkDisabled")) == ("host", None)
