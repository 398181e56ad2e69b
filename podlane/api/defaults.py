"""What Kubernetes fills in before it validates and stores.

Owns: defaults that depend on other fields; constants are the types' own.
Invariants: applying twice changes nothing; nothing the user wrote is changed.
Source: Kubernetes' pkg/apis/core/v1/defaults.go.
"""

from __future__ import annotations

from typing import TypeVar, cast

import msgspec

from podlane.api.types import (
    Container,
    Object,
    Pod,
    PodSpec,
    ReplicationController,
    Service,
    ServicePort,
)

DEFAULT_NAMESPACE = "default"

O = TypeVar("O", bound=Object)  # noqa: E741 - the type variable of "object"


def apply_defaults(obj: O, *, namespace: str = DEFAULT_NAMESPACE) -> O:
    """Fill kind, apiVersion, the namespace of namespaced kinds and what each kind derives."""
    cls = type(obj)
    metadata = obj.metadata
    if cls.NAMESPACED and not metadata.namespace:
        metadata = msgspec.structs.replace(metadata, namespace=namespace)
    filled: Object = msgspec.structs.replace(
        obj, kind=cls.KIND, api_version=cls.API_VERSION, metadata=metadata
    )
    if isinstance(filled, Pod):
        filled = msgspec.structs.replace(filled, spec=_pod_spec(filled.spec))
    elif isinstance(filled, ReplicationController):
        filled = _controller(filled)
    elif isinstance(filled, Service):
        ports = tuple(_service_port(port) for port in filled.spec.ports)
        filled = msgspec.structs.replace(filled, spec=msgspec.structs.replace(filled.spec, ports=ports))
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
        template=msgspec.structs.replace(
            controller.spec.template, spec=_pod_spec(controller.spec.template.spec)
        ),
    )
    metadata = controller.metadata
    if not metadata.labels and labels:
        metadata = msgspec.structs.replace(metadata, labels=dict(labels))
    return msgspec.structs.replace(controller, spec=spec, metadata=metadata)


def _pod_spec(spec: PodSpec) -> PodSpec:
    return msgspec.structs.replace(spec, containers=tuple(_container(c) for c in spec.containers))


def _container(container: Container) -> Container:
    # a resource that is limited but not requested is requested in full
    requests = {**container.resources.limits, **container.resources.requests}
    if requests != container.resources.requests:
        container = msgspec.structs.replace(
            container, resources=msgspec.structs.replace(container.resources, requests=requests)
        )
    if not container.image_pull_policy and container.image:
        container = msgspec.structs.replace(container, image_pull_policy=pull_policy(container.image))
    return container


def _service_port(port: ServicePort) -> ServicePort:
    if port.target_port in {0, ""}:
        return msgspec.structs.replace(port, target_port=port.port)
    return port
