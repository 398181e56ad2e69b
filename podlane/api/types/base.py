"""What every object and every field of one is made of: Struct, Object, metadata, conditions, references."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar, Literal

import msgspec

Protocol = Literal["TCP", "UDP", "SCTP"]
IPFamily = Literal["IPv4", "IPv6"]
Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""One without a zone cannot be compared with the others: whoever stored it would stop every loop that looks at it."""

ConditionStatus = Literal["True", "False", "Unknown"]


class Struct(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Base of everything that is stored or read from a manifest.

    Subclasses repeat `frozen` and `kw_only`: msgspec inherits the first only,
    and type checkers neither.
    """


class OwnerReference(Struct, frozen=True, kw_only=True):
    api_version: str
    kind: str
    name: str
    uid: str
    controller: bool = False
    block_owner_deletion: bool = False


class ObjectMeta(Struct, frozen=True, kw_only=True):
    """metav1.ObjectMeta. `resource_version` is etcd's mod_revision in decimal, never stored in the value."""

    name: str = ""
    generate_name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    deletion_grace_period_seconds: int | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner_references: tuple[OwnerReference, ...] = ()
    finalizers: tuple[str, ...] = ()


class Object(Struct, frozen=True, kw_only=True):
    """A stored object: `kind` and `apiVersion` are always written."""

    KIND: ClassVar[str]
    API_VERSION: ClassVar[str] = "v1"
    NAMESPACED: ClassVar[bool] = True

    kind: str = ""
    api_version: str = ""
    metadata: ObjectMeta = ObjectMeta()


class Condition(Struct, frozen=True, kw_only=True):
    """The conditions of pods, nodes, replication controllers and namespaces share this shape."""

    type: str
    status: ConditionStatus
    reason: str = ""
    message: str = ""
    last_transition_time: Time | None = None
    last_heartbeat_time: Time | None = None
    last_probe_time: Time | None = None
    observed_generation: int = 0


class ObjectReference(Struct, frozen=True, kw_only=True):
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    api_version: str = ""
    resource_version: str = ""
    field_path: str = ""


class LabelSelectorRequirement(Struct, frozen=True, kw_only=True):
    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()


class LabelSelector(Struct, frozen=True, kw_only=True):
    """All of it must hold. An empty one selects everything; where there is none, nothing is selected."""

    match_labels: dict[str, str] = {}
    match_expressions: tuple[LabelSelectorRequirement, ...] = ()
