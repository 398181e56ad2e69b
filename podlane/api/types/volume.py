"""The volumes of a pod, and where its containers mount them."""

from __future__ import annotations

from typing import Literal

import msgspec

from podlane.api.types.base import Struct
from podlane.api.types.reference import ObjectFieldSelector, ResourceFieldSelector


class EmptyDirVolumeSource(Struct, frozen=True, kw_only=True):
    """Lives as long as the pod. `size_limit` is a quantity of bytes, "" none."""

    medium: Literal["", "Memory"] = ""
    size_limit: str = ""


class HostPathVolumeSource(Struct, frozen=True, kw_only=True):
    """`type` says what must be at `path`, or is made there; "" takes what there is."""

    path: str
    type: Literal[
        "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"
    ] = ""


class KeyToPath(Struct, frozen=True, kw_only=True):
    """`mode` None is the volume's default mode."""

    key: str
    path: str
    mode: int | None = None


class ConfigMapVolumeSource(Struct, frozen=True, kw_only=True):
    """One file a key, or those of `items` only. 420 is 0644."""

    name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int = 420
    optional: bool = False


class SecretVolumeSource(Struct, frozen=True, kw_only=True):
    secret_name: str = ""
    items: tuple[KeyToPath, ...] = ()
    default_mode: int = 420
    optional: bool = False


class DownwardAPIVolumeFile(Struct, frozen=True, kw_only=True):
    """Exactly one of `field_ref` and `resource_field_ref`."""

    path: str
    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    mode: int | None = None


class DownwardAPIVolumeSource(Struct, frozen=True, kw_only=True):
    items: tuple[DownwardAPIVolumeFile, ...] = ()
    default_mode: int = 420


class Volume(Struct, frozen=True, kw_only=True):
    """Exactly one of the sources; a volume without any is an emptyDir (the default fills it in)."""

    name: str
    empty_dir: EmptyDirVolumeSource | None = None
    host_path: HostPathVolumeSource | None = None
    config_map: ConfigMapVolumeSource | None = None
    secret: SecretVolumeSource | None = None
    downward_api: DownwardAPIVolumeSource | None = msgspec.field(default=None, name="downwardAPI")


class VolumeMount(Struct, frozen=True, kw_only=True):
    """`sub_path` is the part of the volume to be mounted, "" all of it."""

    name: str
    mount_path: str
    sub_path: str = ""
    read_only: bool = False
