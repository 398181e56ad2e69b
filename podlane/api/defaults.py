"""What Kubernetes fills in before it validates and stores.

Owns: defaults that depend on other fields; constants are the types' own.
Invariants: applying twice changes nothing; nothing the user wrote is changed.
Source: Kubernetes' pkg/apis/core/v1/defaults.go.
"""

from __future__ import annotations

import base64
from typing import Any, TypeVar, cast

import msgspec

from podlane.api import services
from podlane.api.podcreation import completed_spec
from podlane.api.service_update import carry_over
from podlane.api.types import (
    ClientIPConfig,
    Container,
    EmptyDirVolumeSource,
    HTTPGetAction,
    Lifecycle,
    LifecycleHandler,
    Namespace,
    Node,
    Object,
    Pod,
    PodSpec,
    Probe,
    ReplicationController,
    Secret,
    Service,
    ServicePort,
    ServiceSpec,
    SessionAffinityConfig,
    Volume,
)

DEFAULT_NAMESPACE = "default"
NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"

O = TypeVar("O", bound=Object)  # noqa: E741 - the type variable of "object"


def apply_defaults(obj: O, *, namespace: str = DEFAULT_NAMESPACE) -> O:
    """Fill kind, apiVersion, the namespace of namespaced kinds and what each kind derives."""
    cls = type(obj)
    metadata = obj.metadata
    if cls.NAMESPACED and not metadata.namespace:
        metadata = msgspec.structs.replace(metadata, namespace=namespace)
    filled: Object = msgspec.structs.replace(obj, kind=cls.KIND, api_version=cls.API_VERSION, metadata=metadata)
    if isinstance(filled, Pod):
        filled = msgspec.structs.replace(filled, spec=_pod_spec(filled.spec))
    elif isinstance(filled, ReplicationController):
        filled = _controller(filled)
    elif isinstance(filled, Secret):
        filled = _secret(filled)
    elif isinstance(filled, Namespace):
        filled = _namespace(filled)
    elif isinstance(filled, Service):
        filled = msgspec.structs.replace(filled, spec=service_spec(filled.spec))
    return cast(O, filled)


def pull_policy(image: str) -> str:
    """Always for the tag `latest`, given or implied; else IfNotPresent."""
    if "@" in image:
        return "IfNotPresent"
    _, colon, tag = image.rpartition("/")[2].partition(":")
    return "Always" if not colon or tag == "latest" else "IfNotPresent"


def _controller(controller: ReplicationController) -> ReplicationController:
    labels = controller.spec.template.metadata.labels
    spec = msgspec.structs.replace(
        controller.spec,
        selector=controller.spec.selector or dict(labels),
        template=msgspec.structs.replace(controller.spec.template, spec=_pod_spec(controller.spec.template.spec)),
    )
    metadata = controller.metadata
    if not metadata.labels and labels:
        metadata = msgspec.structs.replace(metadata, labels=dict(labels))
    return msgspec.structs.replace(controller, spec=spec, metadata=metadata)


def _secret(secret: Secret) -> Secret:
    """What is written as text is stored as base64, in place of what is there."""
    if not secret.string_data:
        return secret
    text = {key: base64.b64encode(value.encode()).decode() for key, value in secret.string_data.items()}
    return msgspec.structs.replace(secret, data={**secret.data, **text}, string_data={})


def _namespace(namespace: Namespace) -> Namespace:
    """By this label namespaceSelectors find a namespace by its name."""
    metadata = namespace.metadata
    if not metadata.name or metadata.labels.get(NAMESPACE_NAME_LABEL) == metadata.name:
        return namespace
    labels = {**metadata.labels, NAMESPACE_NAME_LABEL: metadata.name}
    return msgspec.structs.replace(namespace, metadata=msgspec.structs.replace(metadata, labels=labels))


def _pod_spec(spec: PodSpec) -> PodSpec:
    return msgspec.structs.replace(
        spec,
        init_containers=tuple(_container(c) for c in spec.init_containers),
        containers=tuple(_container(c) for c in spec.containers),
        volumes=tuple(_volume(v) for v in spec.volumes),
    )


def _volume(volume: Volume) -> Volume:
    """A volume that says nothing of its source is an empty directory."""
    if volume == Volume(name=volume.name):
        return msgspec.structs.replace(volume, empty_dir=EmptyDirVolumeSource())
    return volume


def _container(container: Container) -> Container:
    # a resource that is limited but not requested is requested in full
    requests = {**container.resources.limits, **container.resources.requests}
    if requests != container.resources.requests:
        container = msgspec.structs.replace(
            container, resources=msgspec.structs.replace(container.resources, requests=requests)
        )
    if not container.image_pull_policy and container.image:
        container = msgspec.structs.replace(container, image_pull_policy=pull_policy(container.image))
    if container.startup_probe or container.liveness_probe or container.readiness_probe or container.lifecycle:
        container = msgspec.structs.replace(
            container,
            startup_probe=_probe(container.startup_probe),
            liveness_probe=_probe(container.liveness_probe),
            readiness_probe=_probe(container.readiness_probe),
            lifecycle=_lifecycle(container.lifecycle),
        )
    return container


def _lifecycle(lifecycle: Lifecycle | None) -> Lifecycle | None:
    if lifecycle is None:
        return None
    return msgspec.structs.replace(
        lifecycle, post_start=_hook(lifecycle.post_start), pre_stop=_hook(lifecycle.pre_stop)
    )


def _hook(hook: LifecycleHandler | None) -> LifecycleHandler | None:
    return hook and msgspec.structs.replace(hook, http_get=_http_get(hook.http_get))


def _http_get(action: HTTPGetAction | None) -> HTTPGetAction | None:
    return msgspec.structs.replace(action, path="/") if action is not None and not action.path else action


def _probe(probe: Probe | None) -> Probe | None:
    """A number that is 0 means its default; an empty path means the root."""
    if probe is None:
        return None
    return msgspec.structs.replace(
        probe,
        http_get=_http_get(probe.http_get),
        timeout_seconds=probe.timeout_seconds or 1,
        period_seconds=probe.period_seconds or 10,
        success_threshold=probe.success_threshold or 1,
        failure_threshold=probe.failure_threshold or 3,
    )


def inherit(old: O, new: O) -> O:
    """What an update leaves unsaid and therefore keeps: what the server or a daemon has set.

    These are the status, uid, creation and deletion times, generation and
    resourceVersion, a service's addresses and node ports, a pod's node and what it was given at its creation.
    """
    metadata = msgspec.structs.replace(
        new.metadata,
        uid=new.metadata.uid or old.metadata.uid,
        resource_version=new.metadata.resource_version or old.metadata.resource_version,
        generation=old.metadata.generation,
        creation_timestamp=old.metadata.creation_timestamp,
        deletion_timestamp=old.metadata.deletion_timestamp,
        deletion_grace_period_seconds=old.metadata.deletion_grace_period_seconds,
    )
    kept: Object = msgspec.structs.replace(new, metadata=metadata)
    if hasattr(old, "status"):
        kept = msgspec.structs.replace(kept, status=old.status)
    if isinstance(kept, Service) and isinstance(old, Service):
        kept = carry_over(old, kept)
    elif isinstance(kept, Pod) and isinstance(old, Pod):
        spec = msgspec.structs.replace(
            kept.spec,
            node_name=kept.spec.node_name or old.spec.node_name,
            priority=old.spec.priority if kept.spec.priority is None else kept.spec.priority,
            preemption_policy=kept.spec.preemption_policy or old.spec.preemption_policy,
        )
        kept = msgspec.structs.replace(kept, spec=completed_spec(spec, old.metadata.labels))
    elif isinstance(kept, Node) and isinstance(old, Node) and not kept.spec.pod_cidr:
        was = old.spec
        kept = msgspec.structs.replace(
            kept, spec=msgspec.structs.replace(kept.spec, pod_cidr=was.pod_cidr, pod_cidrs=was.pod_cidrs)
        )
    return cast(O, kept)


def service_spec(spec: ServiceSpec) -> ServiceSpec:
    changes: dict[str, Any] = {"ports": tuple(_service_port(port) for port in spec.ports)}
    if services.is_external(spec) and not spec.external_traffic_policy:
        changes["external_traffic_policy"] = "Cluster"
    config = spec.session_affinity_config
    if config is None or config.client_ip is None:
        lasts = SessionAffinityConfig(client_ip=ClientIPConfig()) if spec.session_affinity == "ClientIP" else None
        changes["session_affinity_config"] = lasts
    return msgspec.structs.replace(spec, **changes)


def _service_port(port: ServicePort) -> ServicePort:
    if port.target_port in {0, ""}:
        return msgspec.structs.replace(port, target_port=port.port)
    return port
