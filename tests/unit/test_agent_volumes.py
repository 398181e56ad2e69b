"""Volumes: a pod in; what must be on the node, and what its containers mount, out."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
from agent_objects import container, pod

from podlane.api.types import (
    ConfigMap,
    ConfigMapVolumeSource,
    DownwardAPIVolumeFile,
    DownwardAPIVolumeSource,
    EmptyDirVolumeSource,
    HostPathVolumeSource,
    KeyToPath,
    ObjectFieldSelector,
    ObjectMeta,
    Pod,
    PodSecurityContext,
    ResourceFieldSelector,
    ResourceRequirements,
    Secret,
    SecretVolumeSource,
    Volume,
    VolumeMount,
)
from scheduler.agent.downward import NodeFacts
from scheduler.agent.podpaths import Paths
from scheduler.agent.references import Followed, Known, Ref
from scheduler.agent.volumes import VolumeMissing, mounts, set_ups, stamp, sub_paths

pytestmark = pytest.mark.unit

NODE = NodeFacts(("192.168.64.11",), {"cpu": "4", "memory": "1Gi"}, 1024**3)
PATHS = Paths("/pods", "/etc/resolv.conf")


def config_map(version: str = "1", **data: str) -> ConfigMap:
    binary = {"blob": base64.b64encode(b"\x00\xff").decode()}
    meta = ObjectMeta(name="cm", namespace="default", resource_version=version)
    return ConfigMap(metadata=meta, data=data, binary_data=binary)


def secret(**data: bytes) -> Secret:
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    return Secret(metadata=ObjectMeta(name="s", namespace="default", resource_version="7"), data=encoded)


def known(*objects: Followed, missing: tuple[Ref, ...] = ()) -> Known:
    return Known({**{Ref(type(o), "default", o.metadata.name): o for o in objects}, **dict.fromkeys(missing)})


def made(volume: Volume, knows: Known | None = None, **spec: Any) -> str:
    return str(set_ups(pod("p", volumes=(volume,), **spec), knows or Known(), PATHS, NODE)[0])


CONFIG = Volume(name="cfg", config_map=ConfigMapVolumeSource(name="cm"))


# --- what must be there ---------------------------------------------------------------------------


def test_empty_dirs_on_disk_and_in_memory() -> None:
    memory = EmptyDirVolumeSource(medium="Memory")
    limited = EmptyDirVolumeSource(medium="Memory", size_limit="1Mi")
    small = container(resources=ResourceRequirements(limits={"memory": "64Ki"}))
    assert made(Volume(name="v", empty_dir=EmptyDirVolumeSource())) == "mkdir -p -m 0777 /pods/uid-p/volumes/v"
    mount = "mkdir -p /pods/uid-p/volumes/v && mount -t tmpfs -o mode=0777,size={} tmpfs /pods/uid-p/volumes/v"
    assert made(Volume(name="v", empty_dir=limited)) == mount.format(1024**2)
    assert made(Volume(name="v", empty_dir=memory)) == mount.format(1024**3)  # what the node offers
    bounded = set_ups(pod("p", small, volumes=(Volume(name="v", empty_dir=limited),)), Known(), PATHS, NODE)
    assert str(bounded[0]) == mount.format(64 * 1024)  # no more than its containers may use


def test_a_config_map_is_a_file_for_each_key() -> None:
    shown = made(CONFIG, known(config_map(b="2", a="1")))
    assert shown == "write /pods/uid-p/volumes/cfg: a(0644) b(0644) blob(0644)"


def test_chosen_keys_with_paths_and_modes_of_their_own() -> None:
    items = (KeyToPath(key="a", path="etc/a.conf", mode=0o400), KeyToPath(key="blob", path="b"))
    volume = Volume(name="v", config_map=ConfigMapVolumeSource(name="cm", items=items, default_mode=0o640))
    files = set_ups(pod("p", volumes=(volume,)), known(config_map(a="1")), PATHS, NODE)[0]
    assert str(files) == "write /pods/uid-p/volumes/v: etc/a.conf(0400) b(0640)"
    assert [file.data for file in files.files] == [b"1", b"\x00\xff"]  # type: ignore[union-attr]


def test_secrets_stay_in_memory_and_out_of_sight() -> None:
    volume = Volume(name="v", secret=SecretVolumeSource(secret_name="s"))
    files = set_ups(pod("p", volumes=(volume,)), known(secret(key=b"hunter2")), PATHS, NODE)[0]
    assert files.memory  # type: ignore[union-attr]
    assert "hunter2" not in f"{files} {files!r}"


def test_the_downward_api_as_files() -> None:
    items = (
        DownwardAPIVolumeFile(path="labels", field_ref=ObjectFieldSelector(field_path="metadata.labels")),
        DownwardAPIVolumeFile(
            path="cpu", mode=0o600,
            resource_field_ref=ResourceFieldSelector(resource="limits.cpu", container_name="web", divisor="1m"),
        ),
    )  # fmt: skip
    volume = Volume(name="v", downward_api=DownwardAPIVolumeSource(items=items))
    labelled = msgspec.structs.replace(
        pod("p", volumes=(volume,)), metadata=ObjectMeta(name="p", namespace="default", uid="u", labels={"a": "b"})
    )
    files = set_ups(labelled, Known(), PATHS, NODE)[0]
    assert [(f.path, f.data, f.mode) for f in files.files] == [  # type: ignore[union-attr]
        ("labels", b'a="b"', 0o644),
        ("cpu", b"4000", 0o600),  # no limit: what the node offers
    ]


def test_a_group_owns_what_is_the_pods() -> None:
    given = PodSecurityContext(fs_group=2000)
    both = (Volume(name="e", empty_dir=EmptyDirVolumeSource()), CONFIG)
    owned = set_ups(pod("p", volumes=both, security_context=given), known(config_map()), PATHS, NODE)
    assert [volume.group for volume in owned] == [2000, 2000]  # type: ignore[union-attr]


MISSING = (Ref(ConfigMap, "default", "cm"), Ref(Secret, "default", "s"))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ({"config_map": ConfigMapVolumeSource(name="cm")}, 'configmap "cm" not found'),
        ({"secret": SecretVolumeSource(secret_name="s")}, 'secret "s" not found'),
    ],
)
def test_what_is_missing_is_named_unless_it_is_optional(source: dict[str, Any], text: str) -> None:
    with pytest.raises(VolumeMissing) as raised:
        made(Volume(name="v", **source), known(missing=MISSING))
    assert str(raised.value) == f'MountVolume.SetUp failed for volume "v" : {text}'
    optional = {name: msgspec.structs.replace(given, optional=True) for name, given in source.items()}
    assert made(Volume(name="v", **optional), known(missing=MISSING)) == "write /pods/uid-p/volumes/v: nothing"


def test_a_missing_key_is_named_unless_the_volume_is_optional() -> None:
    source = ConfigMapVolumeSource(name="cm", items=(KeyToPath(key="no", path="x"),))
    with pytest.raises(VolumeMissing, match="references non-existent config key: no"):
        made(Volume(name="v", config_map=source), known(config_map()))
    optional = msgspec.structs.replace(source, optional=True)
    assert made(Volume(name="v", config_map=optional), known(config_map())).endswith("nothing")


# --- when it changes -----------------------------------------------------------------------------------


def test_the_stamp_changes_with_the_content_and_with_nothing_else() -> None:
    mine = pod("p", volumes=(CONFIG,))
    before = stamp(mine, known(config_map("1", a="1")))
    assert before
    assert stamp(relabelled(mine), known(config_map("1", a="1"), secret(k=b"1"))) == before
    assert stamp(mine, known(config_map("2", a="2"))) != before
    assert stamp(mine, known(missing=MISSING)) != before
    assert stamp(mine, Known()) != stamp(mine, known(missing=MISSING))


def test_labels_matter_where_the_downward_api_shows_them() -> None:
    said = pod("p", volumes=(Volume(name="v", downward_api=DownwardAPIVolumeSource()),))
    assert stamp(said, Known()) != stamp(relabelled(said), Known())


def test_a_pod_without_volumes_has_no_stamp() -> None:
    assert stamp(pod("p"), Known()) == ()


def relabelled(obj: Pod) -> Pod:
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, labels={"new": "yes"}))


# --- what a container mounts ---------------------------------------------------------------------------


def test_mounts_are_the_pods_files_and_its_volumes() -> None:
    volumes = (Volume(name="e", empty_dir=EmptyDirVolumeSource()), CONFIG,
               Volume(name="h", host_path=HostPathVolumeSource(path="/srv/data")))  # fmt: skip
    asked = (VolumeMount(name="e", mount_path="/data"), VolumeMount(name="cfg", mount_path="etc/app"),
             VolumeMount(name="h", mount_path="/host", read_only=True))  # fmt: skip
    ct = container(volume_mounts=asked)
    assert [(m.source, m.target, m.read_only) for m in mounts(pod("p", ct, volumes=volumes), ct, PATHS)] == [
        ("/pods/uid-p/hosts", "/etc/hosts", False),
        ("/etc/resolv.conf", "/etc/resolv.conf", True),
        ("/pods/uid-p/volumes/e", "/data", False),
        ("/pods/uid-p/volumes/cfg", "/etc/app", True),  # nobody writes what we write
        ("/srv/data", "/host", True),
    ]


def test_a_volume_in_the_place_of_the_hosts_file_replaces_it() -> None:
    ct = container(volume_mounts=(VolumeMount(name="cfg", mount_path="/etc/hosts", sub_path="hosts"),))
    mine = pod("p", ct, volumes=(CONFIG,))
    assert [(m.source, m.target) for m in mounts(mine, ct, PATHS)] == [
        ("/etc/resolv.conf", "/etc/resolv.conf"),
        ("/pods/uid-p/subpaths/web/0", "/etc/hosts"),
    ]
    assert [str(part) for part in sub_paths(mine, ct, PATHS)] == [
        "mount --bind /pods/uid-p/volumes/cfg/hosts /pods/uid-p/subpaths/web/0"
    ]
