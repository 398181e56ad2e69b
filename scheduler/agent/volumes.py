"""A pod's volumes: what must be on the node before its containers are made, and what each of them mounts. Pure.

Owns: the translation of volumes into folders and files of the node
(`VolumeSetUp`, carried out by volumefiles.py) and of volumeMounts into the
engine's mounts. Invariants: config maps, secrets and the downward API are
mounted read-only; an object that goes away leaves a running pod what it had; a
stamp is equal exactly when the content is, and is cheap to compare, since it is
compared for each pod at each look. Source: the kubelet's volume plugins
(pkg/volume/{emptydir,hostpath,configmap,secret,downwardapi}) and makeMounts.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

from podlane.api import quantity
from podlane.api.types import ConfigMap, Container, KeyToPath, Pod, Secret, Volume
from podlane.errors import PodlaneError
from scheduler.agent.downward import NodeFacts, field_value, resource_value
from scheduler.agent.environment import read
from scheduler.agent.podpaths import Paths
from scheduler.agent.references import Followed, Known, Ref, volume_refs
from scheduler.agent.runtime import Mount

Stamp = tuple[object, ...]
"""What a pod's volumes were made from; () where nothing needs to be made."""


class VolumeMissing(PodlaneError):
    """A volume cannot be made from what is in the store; the text is the kubelet's."""


@dataclass(frozen=True, slots=True)
class EmptyDir:
    """`size` in bytes, for memory only, 0: the kernel's default of half the machine's."""

    name: str
    path: str
    memory: bool = False
    size: int = 0
    group: int | None = None

    def __str__(self) -> str:
        if not self.memory:
            return f"mkdir -p -m 0777 {self.path}"
        size = f",size={self.size}" if self.size else ""
        return f"mkdir -p {self.path} && mount -t tmpfs -o mode=0777{size} tmpfs {self.path}"


@dataclass(frozen=True, slots=True)
class HostPath:
    """`kind` as the API's hostPath.type."""

    name: str
    path: str
    kind: str = ""

    def __str__(self) -> str:
        return f"test hostPath {self.path} {self.kind or 'any'}"


@dataclass(frozen=True, slots=True)
class File:
    path: str
    data: bytes = field(repr=False)
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Files:
    """Files that are exchanged all at once; `memory`: they must not reach a disk."""

    name: str
    path: str
    files: tuple[File, ...]
    memory: bool = False
    group: int | None = None

    def __str__(self) -> str:
        return f"write {self.path}: {' '.join(f'{f.path}({f.mode:04o})' for f in self.files) or 'nothing'}"


VolumeSetUp = EmptyDir | HostPath | Files


@dataclass(frozen=True, slots=True)
class SubPath:
    """A part of a volume that is bound to `target` for one container: it may lead nowhere but into the volume."""

    volume: str
    root: str
    part: str
    target: str

    def __str__(self) -> str:
        return f"mount --bind {self.root}/{self.part} {self.target}"


def stamp(pod: Pod, known: Known) -> Stamp:
    """Equal exactly when the pod's volumes are to have the same content."""
    if not pod.spec.volumes:
        return ()
    versions = tuple(
        (str(ref), _version(known.objects.get(ref)) if ref in known.objects else None) for ref in volume_refs(pod)
    )
    meta = pod.metadata
    said = any(volume.downward_api is not None for volume in pod.spec.volumes)
    fields = (tuple(sorted(meta.labels.items())), tuple(sorted(meta.annotations.items()))) if said else ()
    return (pod.metadata.uid, *versions, *fields)


def _version(obj: Followed | None) -> str:
    return "" if obj is None else obj.metadata.uid + obj.metadata.resource_version


def set_ups(pod: Pod, known: Known, paths: Paths, node: NodeFacts) -> tuple[VolumeSetUp, ...]:
    """What must be there for the pod, in its volumes' order. Raises VolumeMissing, NotRead."""
    return tuple(_set_up(pod, volume, known, paths, node) for volume in pod.spec.volumes)


def _set_up(pod: Pod, volume: Volume, known: Known, paths: Paths, node: NodeFacts) -> VolumeSetUp:
    path = paths.volume(pod.metadata.uid, volume.name)
    group = pod.spec.security_context.fs_group if pod.spec.security_context else None
    if volume.host_path is not None:
        return HostPath(volume.name, volume.host_path.path, volume.host_path.type)
    if volume.config_map is not None:
        source = volume.config_map
        obj = _object(volume, Ref(ConfigMap, pod.metadata.namespace, source.name), known, optional=source.optional)
        files = _chosen(volume, obj, source.items, source.default_mode, optional=source.optional)
        return Files(volume.name, path, files, group=group)
    if volume.secret is not None:
        secret = volume.secret
        obj = _object(volume, Ref(Secret, pod.metadata.namespace, secret.secret_name), known, optional=secret.optional)
        files = _chosen(volume, obj, secret.items, secret.default_mode, optional=secret.optional)
        return Files(volume.name, path, files, memory=True, group=group)
    if volume.downward_api is not None:
        return Files(volume.name, path, _said(pod, volume, node), group=group)
    empty = volume.empty_dir
    if empty is None or empty.medium != "Memory":
        return EmptyDir(volume.name, path, group=group)
    return EmptyDir(volume.name, path, memory=True, size=_memory_size(pod, empty.size_limit, node), group=group)


def _memory_size(pod: Pod, limit: str, node: NodeFacts) -> int:
    """The least of the volume's limit, the memory all containers together may use, and the node's; 0 if none is set."""
    limits = [ct.resources.limits.get("memory", "0") for ct in pod.spec.containers]
    sizes = [quantity.bytes_(limit or "0"), quantity.bytes_(node.allocatable.get("memory", "0"))]
    if all(quantity.bytes_(text) for text in limits):
        sizes.append(sum(map(quantity.bytes_, limits)))
    return min((size for size in sizes if size), default=0)


def _object(volume: Volume, ref: Ref, known: Known, *, optional: bool) -> Followed | None:
    obj = read(known, ref)
    if obj is None and not optional:
        raise VolumeMissing(_failed(volume.name, f"{ref} not found"))
    return obj


def _failed(volume: str, cause: str) -> str:
    return f'MountVolume.SetUp failed for volume "{volume}" : {cause}'


def _chosen(
    volume: Volume, obj: Followed | None, items: Sequence[KeyToPath], mode: int, *, optional: bool
) -> tuple[File, ...]:
    if obj is None:
        return ()
    content = contents(obj)
    if not items:
        return tuple(File(key, content[key], mode) for key in sorted(content))
    files = []
    for item in items:
        if item.key in content:
            files.append(File(item.path, content[item.key], mode if item.mode is None else item.mode))
        elif not optional:
            what = "config" if isinstance(obj, ConfigMap) else "secret"
            raise VolumeMissing(_failed(volume.name, f"references non-existent {what} key: {item.key}"))
    return tuple(files)


def contents(obj: Followed) -> dict[str, bytes]:
    """Every key of a config map or a secret, as bytes."""
    if isinstance(obj, ConfigMap):
        text = {key: value.encode("utf-8", "surrogateescape") for key, value in obj.data.items()}
        return text | {key: base64.b64decode(value) for key, value in obj.binary_data.items()}
    return {key: base64.b64decode(value) for key, value in obj.data.items()}


def _said(pod: Pod, volume: Volume, node: NodeFacts) -> tuple[File, ...]:
    assert volume.downward_api is not None
    files = []
    for item in volume.downward_api.items:
        try:
            if item.field_ref is not None:
                text = field_value(item.field_ref, pod, node, ())
            elif item.resource_field_ref is not None:
                text = resource_value(item.resource_field_ref, pod, None, node)
            else:
                text = ""
        except PodlaneError as error:
            raise VolumeMissing(_failed(volume.name, str(error))) from error
        mode = volume.downward_api.default_mode if item.mode is None else item.mode
        files.append(File(item.path, text.encode("utf-8", "surrogateescape"), mode))
    return tuple(files)


# --- what a container mounts -------------------------------------------------------------------


def mounts(pod: Pod, container: Container, paths: Paths) -> tuple[Mount, ...]:
    """A container's volumes, and of the pod's own files those for whose place it has no volume."""
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    mine = []
    for index, mount in enumerate(container.volume_mounts):
        volume = volumes[mount.name]
        if mount.sub_path:
            source = paths.sub_path(pod.metadata.uid, container.name, index)
        else:
            source = _source(pod, volume, paths)
        target = mount.mount_path if mount.mount_path.startswith("/") else f"/{mount.mount_path}"
        mine.append(Mount(source, target, read_only=mount.read_only or _is_written_by_us(volume)))
    taken = {mount.target.rstrip("/") for mount in mine}
    return (*(m for m in paths.mounts(pod.metadata.uid) if m.target not in taken), *mine)


def sub_paths(pod: Pod, container: Container, paths: Paths) -> tuple[SubPath, ...]:
    """What must be bound before a container with volume mounts of parts is made."""
    volumes = {volume.name: volume for volume in pod.spec.volumes}
    return tuple(
        SubPath(
            mount.name,
            _source(pod, volumes[mount.name], paths),
            mount.sub_path,
            paths.sub_path(pod.metadata.uid, container.name, index),
        )
        for index, mount in enumerate(container.volume_mounts)
        if mount.sub_path
    )


def _source(pod: Pod, volume: Volume, paths: Paths) -> str:
    if volume.host_path is not None:
        return volume.host_path.path
    return paths.volume(pod.metadata.uid, volume.name)


def _is_written_by_us(volume: Volume) -> bool:
    return volume.config_map is not None or volume.secret is not None or volume.downward_api is not None
