"""What a pod says of itself and of config maps and secrets: in its environment and in its volumes."""

from __future__ import annotations

from podlane.api.types.base import Struct


class ObjectFieldSelector(Struct, frozen=True, kw_only=True):
    """A field of the pod: `metadata.name`, `metadata.labels['app']`, `status.podIP`."""

    field_path: str
    api_version: str = "v1"


class ResourceFieldSelector(Struct, frozen=True, kw_only=True):
    """`limits.cpu` and the like of a container, in units of `divisor` ("" is 1), rounded up."""

    resource: str
    container_name: str = ""
    divisor: str = ""


class ConfigMapKeySelector(Struct, frozen=True, kw_only=True):
    key: str
    name: str = ""
    optional: bool = False


class SecretKeySelector(Struct, frozen=True, kw_only=True):
    key: str
    name: str = ""
    optional: bool = False


class EnvVarSource(Struct, frozen=True, kw_only=True):
    """Exactly one of them."""

    field_ref: ObjectFieldSelector | None = None
    resource_field_ref: ResourceFieldSelector | None = None
    config_map_key_ref: ConfigMapKeySelector | None = None
    secret_key_ref: SecretKeySelector | None = None


class EnvVar(Struct, frozen=True, kw_only=True):
    name: str
    value: str = ""
    value_from: EnvVarSource | None = None


class ConfigMapEnvSource(Struct, frozen=True, kw_only=True):
    name: str = ""
    optional: bool = False


class SecretEnvSource(Struct, frozen=True, kw_only=True):
    name: str = ""
    optional: bool = False


class EnvFromSource(Struct, frozen=True, kw_only=True):
    """All keys of a config map or a secret, each as a variable named `prefix` + key."""

    prefix: str = ""
    config_map_ref: ConfigMapEnvSource | None = None
    secret_ref: SecretEnvSource | None = None
