"""Replication controllers, and the template of pods that they share with controllers to come."""

from __future__ import annotations

from typing import ClassVar

from podlane.api.types.base import Condition, Object, ObjectMeta, Struct
from podlane.api.types.pod import PodSpec


class PodTemplateSpec(Struct, frozen=True, kw_only=True):
    metadata: ObjectMeta = ObjectMeta()
    spec: PodSpec = PodSpec()


class ReplicationControllerSpec(Struct, frozen=True, kw_only=True):
    replicas: int = 1
    selector: dict[str, str] = {}
    template: PodTemplateSpec = PodTemplateSpec()
    min_ready_seconds: int = 0


class ReplicationControllerStatus(Struct, frozen=True, kw_only=True):
    replicas: int = 0
    fully_labeled_replicas: int = 0
    ready_replicas: int = 0
    available_replicas: int = 0
    observed_generation: int = 0
    conditions: tuple[Condition, ...] = ()


class ReplicationController(Object, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "ReplicationController"
    spec: ReplicationControllerSpec = ReplicationControllerSpec()
    # replicas 0 is not the default, so it is written; 1 is the default and may be left out
    status: ReplicationControllerStatus = ReplicationControllerStatus()
