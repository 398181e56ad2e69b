"""A pod as its processes see it: the real agent, dockerd, etcd and kernel, looked at from inside the containers."""

from __future__ import annotations

import base64
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agent_rig import Rig, begin, eventually, one_node
from dockerd_process import IMAGE

from podlane.api.types import (
    Capabilities,
    ConfigMap,
    ConfigMapEnvSource,
    ConfigMapVolumeSource,
    Container,
    ContainerPort,
    DownwardAPIVolumeFile,
    DownwardAPIVolumeSource,
    EmptyDirVolumeSource,
    EnvFromSource,
    EnvVar,
    EnvVarSource,
    Event,
    HostAlias,
    HostPathVolumeSource,
    ObjectFieldSelector,
    ObjectMeta,
    Pod,
    PodSecurityContext,
    ResourceFieldSelector,
    ResourceRequirements,
    Secret,
    SecretKeySelector,
    SecretVolumeSource,
    SecurityContext,
    Service,
    ServicePort,
    ServiceSpec,
    Volume,
    VolumeMount,
)
from scheduler.agent import mounts

pytestmark = pytest.mark.kernel

SLEEP = ("sleep", "1000")
SERVE = ("httpd", "-f", "-p", "8080", "-h", "/")


@pytest.fixture
def rig(netns: Any, netns_etcd: Any, tmp_path: Path) -> Iterator[Rig]:
    """A node of which no mount stays."""
    with one_node(netns, netns_etcd, tmp_path) as rig:
        yield rig
    for point in mounts.mount_points(str(tmp_path)):
        mounts.unmount(point)


def sleeper(name: str = "main", **changes: Any) -> Container:
    return Container(**{"name": name, "image": IMAGE, "command": SLEEP, "image_pull_policy": "Never", **changes})


def running(rig: Rig, name: str) -> bool:
    return rig.get(name).status.phase == "Running" and rig.ready(name)


def inside(rig: Rig, pod: str, script: str, container: str = "main", attempt: int = 0) -> str:
    uid = rig.get(pod).metadata.uid
    return " ".join(rig.docker("exec", f"podlane_{container}_{pod}_default_{uid}_{attempt}", "sh", "-c", script))


def environment(rig: Rig, pod: str) -> dict[str, str]:
    text = inside(rig, pod, "cat /proc/1/environ").split("\0")
    return dict(line.split("=", 1) for line in text if "=" in line)


def waiting(rig: Rig, pod: str) -> tuple[str, str]:
    statuses = rig.get(pod).status.container_statuses
    state = statuses[0].state.waiting if statuses else None
    return (state.reason, state.message) if state else ("", "")


def told(rig: Rig, reason: str) -> list[str]:
    return [event.message for event in rig.registry.list(Event).items if event.reason == reason]


def meta(name: str) -> ObjectMeta:
    return ObjectMeta(name=name, namespace="default")


def cgroup(rig: Rig, pod: str, controller: str, *names: str) -> str:
    """The first of these files of a container's cgroup (version 1's name, then version 2's)."""
    pid = rig.docker("inspect", "-f", "{{.State.Pid}}", f"podlane_main_{pod}_default_{rig.get(pod).metadata.uid}_0")[0]
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") or not controllers:
            for root in (f"/sys/fs/cgroup/{controllers}", f"/sys/fs/cgroup/{controller}", "/sys/fs/cgroup"):
                for name in names:
                    file = Path(f"{root}{path}/{name}")
                    if file.is_file():
                        return file.read_text().strip()
    raise AssertionError(f"{names} not found")


def test_a_pod_looked_at_from_inside(rig: Rig, tmp_path: Path) -> None:
    begin(rig)
    rig.registry.create(ConfigMap(metadata=meta("cm"), data={"mode": "fast", "app.conf": "one"}))
    key = base64.b64encode(b"hunter2").decode()
    rig.registry.create(Secret(metadata=meta("s"), data={"key": key}))
    service = ServiceSpec(ports=(ServicePort(port=80),))
    address = rig.registry.create(Service(metadata=meta("web"), spec=service)).spec.cluster_ip
    node_folder = tmp_path / "node"

    volumes = (
        Volume(name="shared", empty_dir=EmptyDirVolumeSource()),
        Volume(name="fast", empty_dir=EmptyDirVolumeSource(medium="Memory", size_limit="1Mi")),
        Volume(name="cfg", config_map=ConfigMapVolumeSource(name="cm")),
        Volume(name="sec", secret=SecretVolumeSource(secret_name="s", default_mode=0o400)),
        Volume(
            name="me",
            downward_api=DownwardAPIVolumeSource(
                items=(
                    DownwardAPIVolumeFile(path="labels", field_ref=ObjectFieldSelector(field_path="metadata.labels")),
                )
            ),
        ),
        Volume(name="node", host_path=HostPathVolumeSource(path=str(node_folder), type="DirectoryOrCreate")),
    )
    mounted_at = (
        VolumeMount(name="shared", mount_path="/shared"),
        VolumeMount(name="fast", mount_path="/fast"),
        VolumeMount(name="cfg", mount_path="/cfg"),
        VolumeMount(name="cfg", mount_path="/one.conf", sub_path="app.conf"),
        VolumeMount(name="sec", mount_path="/sec"),
        VolumeMount(name="me", mount_path="/me"),
        VolumeMount(name="node", mount_path="/node"),
    )
    env = (
        EnvVar(name="KEY", value_from=EnvVarSource(secret_key_ref=SecretKeySelector(name="s", key="key"))),
        EnvVar(name="IP", value_from=EnvVarSource(field_ref=ObjectFieldSelector(field_path="status.podIP"))),
        EnvVar(
            name="MEM",
            value_from=EnvVarSource(resource_field_ref=ResourceFieldSelector(resource="limits.memory", divisor="1Mi")),
        ),
        EnvVar(name="URL", value="http://$(WEB_SERVICE_HOST)/$(mode)"),
    )
    main = sleeper(
        env=env,
        env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),),
        volume_mounts=mounted_at,
        resources=ResourceRequirements(
            requests={"cpu": "250m", "memory": "16Mi"}, limits={"cpu": "500m", "memory": "32Mi"}
        ),
        security_context=SecurityContext(
            read_only_root_filesystem=True,
            capabilities=Capabilities(drop=("ALL",), add=("NET_BIND_SERVICE",)),
            allow_privilege_escalation=False,
        ),
    )
    other = sleeper("other", volume_mounts=(VolumeMount(name="shared", mount_path="/there", read_only=True),))
    rig.bind(
        "p",
        main,
        other,
        volumes=volumes,
        host_aliases=(HostAlias(ip="10.1.2.3", hostnames=("db", "db.local")),),
        security_context=PodSecurityContext(run_as_user=1234, run_as_group=4321, fs_group=2000),
    )
    eventually(lambda: running(rig, "p"))

    # volumes
    uid = rig.get("p").metadata.uid
    inside(rig, "p", "echo hello > /shared/x")
    (node_folder / "y").write_text("here")
    assert inside(rig, "p", "cat /there/x", "other") == "hello"
    assert "Read-only file system" in inside(rig, "p", "{ echo no > /there/x; } 2>&1 || true", "other")
    assert inside(rig, "p", "cat /node/y") == "here"
    assert inside(rig, "p", "for f in cfg/app.conf one.conf cfg/mode sec/key me/labels; do cat /$f; echo; done") == (
        "one one fast hunter2"  # and no labels
    )
    mounted = inside(rig, "p", "cat /proc/mounts")
    assert re.search(r"tmpfs /fast tmpfs rw\S*size=1024k", mounted)
    assert re.search(r"tmpfs /sec tmpfs ro", mounted)
    assert re.search(r"\S+ /cfg \S+ ro", mounted)
    assert re.search(r"\S+ / \S+ ro", mounted)

    # variables, hosts, rights
    seen = environment(rig, "p")
    assert (seen["KEY"], seen["MEM"], seen["mode"], seen["app.conf"]) == ("hunter2", "32", "fast", "one")
    assert seen["IP"] == rig.get("p").status.pod_ip
    assert (seen["WEB_SERVICE_HOST"], seen["URL"]) == (address, f"http://{address}/fast")
    assert "10.1.2.3 db db.local" in inside(rig, "p", "cat /etc/hosts")
    status = inside(rig, "p", "cat /proc/1/status")
    assert re.search(r"Uid: 1234 .*Gid: 4321 .*Groups: (.* )?2000 ", status)
    assert re.search(r"CapBnd: 0000000000000400 .*NoNewPrivs: 1 ", status)

    # limits
    assert cgroup(rig, "p", "memory", "memory.limit_in_bytes", "memory.max") == str(32 * 1024**2)
    assert cgroup(rig, "p", "cpu", "cpu.cfs_quota_us", "cpu.max").split()[0] == "50000"
    assert cgroup(rig, "p", "cpu", "cpu.shares", "cpu.weight") in {"256", "10"}
    assert 900 < int(inside(rig, "p", "cat /proc/1/oom_score_adj")) < 1000

    # news of a config map reach the volume, not its part that is mounted, and restart nothing
    before = rig.containers()
    stored = rig.registry.get(ConfigMap, "default", "cm")
    rig.registry.update(msgspec.structs.replace(stored, data={"app.conf": "two", "new": "file"}))
    eventually(lambda: inside(rig, "p", "cat /cfg/app.conf") == "two")
    assert inside(rig, "p", "cat /one.conf; echo; cat /cfg/new; echo; cat /cfg/mode 2>&1 || true") == (
        "one file cat: can't open '/cfg/mode': No such file or directory"
    )
    rig.end_agent(signal.SIGKILL)
    stored = rig.registry.get(ConfigMap, "default", "cm")
    rig.registry.update(msgspec.structs.replace(stored, data={"app.conf": "three"}))
    rig.start_agent()
    eventually(lambda: inside(rig, "p", "cat /cfg/app.conf") == "three")
    assert rig.containers() == before

    # what a restarted container finds
    rig.docker("kill", f"podlane_main_p_default_{uid}_0")
    eventually(lambda: rig.get("p").status.container_statuses[0].restart_count == 1 and running(rig, "p"))
    assert inside(rig, "p", "cat /shared/x; cat /one.conf", attempt=1) == "hello three"

    # and the end
    mine = str(rig.folder / "state" / "pods" / uid)
    assert mine in Path("/proc/self/mountinfo").read_text()
    rig.registry.delete(Pod, "default", "p")
    eventually(lambda: rig.gone("p") and not Path(mine).exists())
    assert mine not in Path("/proc/self/mountinfo").read_text()
    assert (node_folder / "y").read_text() == "here"


def test_what_a_pod_waits_for_is_said_and_ends_when_it_comes(rig: Rig, tmp_path: Path) -> None:
    begin(rig)
    from_cm = sleeper(env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="late")),))
    rig.bind("env", from_cm)
    mounted = sleeper(volume_mounts=(VolumeMount(name="v", mount_path="/v"),))
    rig.bind("vol", mounted, volumes=(Volume(name="v", secret=SecretVolumeSource(secret_name="late")),))
    folder = tmp_path / "node"
    path = HostPathVolumeSource(path=str(folder), type="Directory")
    rig.bind("host", mounted, volumes=(Volume(name="v", host_path=path),))
    strict = PodSecurityContext(run_as_non_root=True)
    rig.bind("root", sleeper(), security_context=strict)

    missing = 'configmap "late" not found'
    eventually(lambda: waiting(rig, "env") == ("CreateContainerConfigError", missing))
    eventually(lambda: told(rig, "Failed").count(f"Error: {missing}") == 1)
    no_secret = 'MountVolume.SetUp failed for volume "v" : secret "late" not found'
    eventually(lambda: no_secret in waiting(rig, "vol")[1])
    no_folder = f'MountVolume.SetUp failed for volume "v" : hostPath type check failed: {folder} is not a directory'
    eventually(lambda: no_folder in waiting(rig, "host")[1])
    eventually(lambda: {no_secret, no_folder} <= set(told(rig, "FailedMount")))
    as_root = "container has runAsNonRoot and image will run as root"
    eventually(lambda: waiting(rig, "root") == ("CreateContainerConfigError", as_root))

    rig.registry.create(ConfigMap(metadata=meta("late"), data={"A": "1"}))
    rig.registry.create(Secret(metadata=meta("late"), data={"k": base64.b64encode(b"v").decode()}))
    folder.mkdir()
    for name in ("env", "vol", "host"):
        eventually(lambda name=name: running(rig, name), 90)
    assert environment(rig, "env")["A"] == "1"
    assert inside(rig, "vol", "cat /v/k") == "v"
    assert told(rig, "Failed").count(f"Error: {missing}") == 1


def test_ports_of_the_node_and_pods_on_its_network(rig: Rig) -> None:
    begin(rig)
    for command in ("sysctl -qw net.ipv4.ip_forward=1", "iptables -P FORWARD ACCEPT"):
        rig.netns.run(command)  # netd's to do
    port = ContainerPort(container_port=8080, host_port=18080)
    rig.bind("led", sleeper(command=SERVE, ports=(port,)))
    rig.bind("own", sleeper(command=(*SERVE[:3], "18081", *SERVE[4:])), host_network=True)
    eventually(lambda: running(rig, "led") and running(rig, "own"))
    node = rig.netns.address

    def answers(number: int, address: str = node) -> bool:
        url = f"http://{address}:{number}/bin/sh"
        return bool(rig.netns.ok(["timeout", "3", "busybox", "wget", "-q", "-O", "/dev/null", url]))

    eventually(lambda: answers(18080))
    assert answers(18080, "127.0.0.1")
    assert answers(18081)
    assert "drop" in rig.netns.run("nft list chain inet podlane-hostports guard")
    inside(rig, "led", f"wget -q -O /dev/null http://{node}:18080/bin/sh")  # a pod to its own port
    assert rig.get("own").status.pod_ip == "127.0.0.1"  # the node's, in this test
    assert "Podlane-managed hosts file (host network)" in inside(rig, "own", "cat /etc/hosts")

    rig.netns.run("nft delete table inet podlane-hostports")
    rig.registry.delete(Pod, "default", "own")
    eventually(lambda: rig.gone("own"))
    eventually(lambda: answers(18080), 60)  # at the next look at the table
    rig.registry.delete(Pod, "default", "led")
    eventually(lambda: rig.gone("led") and "podlane-hostports" not in rig.netns.run("nft list tables"))
    assert not answers(18080)
    assert rig.netns.run("sysctl -n net.ipv4.conf.podlane0.route_localnet").strip() == "0"
