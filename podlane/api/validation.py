"""Kubernetes' rules for the objects Podlane supports.

Owns: `validate` (after defaults were applied) and the rules of metadata and of
the kinds without a file of their own. Invariants: every error is found in one
pass, none raises; the path of an error is the field's as it is written in a
manifest. Source: Kubernetes' pkg/apis/core/validation/validation.go and
apimachinery's pkg/api/validation/objectmeta.go.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from podlane.api import names, quantity, types
from podlane.api.fields import Errors, join
from podlane.api.validation_config import check_config_map, check_secret
from podlane.api.validation_pod import check_pod_spec
from podlane.api.validation_policy import check_priority_class, check_quota
from podlane.api.validation_scheduling import check_taints
from podlane.api.validation_service import check_service
from podlane.api.validation_slice import check_endpoint_slice
from podlane.api.validation_update import validate_update
from podlane.errors import FieldError

__all__ = ["validate", "validate_update"]

ANNOTATIONS_LIMIT = 256 * 1024
"""Bytes of all keys and values together."""

_NAME_RULES = {
    types.Service: names.dns_1035_label_error,
    types.Namespace: names.dns_label_error,
}


def validate(obj: types.Object, path: str = "") -> list[FieldError]:
    """Everything wrong with an object that has its defaults; fields are named below `path`."""
    errors = Errors()
    _check_metadata(obj, join(path, "metadata"), errors)
    spec = join(path, "spec")
    match obj:
        case types.Pod():
            check_pod_spec(obj.spec, spec, errors)
        case types.ReplicationController():
            _check_controller(obj.spec, spec, errors)
        case types.Service():
            check_service(obj, path, errors)
        case types.EndpointSlice():
            check_endpoint_slice(obj, path, errors)
        case types.Node():
            _check_node(obj, path, errors)
        case types.Lease():
            _check_lease(obj.spec, spec, errors)
        case types.Event():
            _check_event(obj, path, errors)
        case types.ConfigMap():
            check_config_map(obj, path, errors)
        case types.Secret():
            check_secret(obj, path, errors)
        case types.ResourceQuota():
            check_quota(obj, path, errors)
        case types.PriorityClass():
            check_priority_class(obj, path, errors)
        case _:
            pass  # a Namespace has nothing but its metadata
    return errors.found


def _check_metadata(obj: types.Object, path: str, errors: Errors) -> None:
    cls, metadata = type(obj), obj.metadata
    name_error = _NAME_RULES.get(cls, names.dns_subdomain_error)
    if metadata.generate_name:
        # what is generated ends in letters, so a last "-" is no fault
        stem = metadata.generate_name
        errors.check(join(path, "generateName"), name_error(f"{stem[:-1]}a" if len(stem) > 1 else stem))
    if metadata.name:
        errors.check(join(path, "name"), name_error(metadata.name))
    elif not metadata.generate_name:
        errors.add(join(path, "name"), "required: a name or a generateName")
    if not cls.NAMESPACED:
        if metadata.namespace:
            errors.add(join(path, "namespace"), f'a {cls.KIND} has no namespace, got "{metadata.namespace}"')
    elif not metadata.namespace:
        errors.add(join(path, "namespace"), "required")
    else:
        errors.check(join(path, "namespace"), names.dns_label_error(metadata.namespace))
    errors.integer(types.ObjectMeta, "generation", metadata.generation, join(path, "generation"))
    _check_labels_and_annotations(metadata, path, errors)
    _check_owners(metadata.owner_references, join(path, "ownerReferences"), errors)
    for index, finalizer in enumerate(metadata.finalizers):
        errors.check(f"{join(path, 'finalizers')}[{index}]", names.finalizer_error(finalizer))
    if "orphan" in metadata.finalizers and "foregroundDeletion" in metadata.finalizers:
        errors.add(join(path, "finalizers"), "expected orphan or foregroundDeletion, got both")


def _check_labels_and_annotations(metadata: types.ObjectMeta, path: str, errors: Errors) -> None:
    check_labels(metadata.labels, join(path, "labels"), errors)
    annotations = join(path, "annotations")
    for key in metadata.annotations:
        # Kubernetes lets the keys of annotations carry capitals everywhere
        errors.check(f"{annotations}[{key}]", names.label_key_error(key.lower()))
    size = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.annotations.items())
    if size > ANNOTATIONS_LIMIT:
        errors.add(annotations, f"expected at most {ANNOTATIONS_LIMIT} bytes in all, got {size}")


def check_labels(labels: Mapping[str, str], path: str, errors: Errors) -> None:
    """Keys and values of labels or of a selector."""
    for key, value in labels.items():
        errors.check(f"{path}[{key}]", names.label_key_error(key) or names.label_value_error(value))


def _check_owners(owners: tuple[types.OwnerReference, ...], path: str, errors: Errors) -> None:
    for index, owner in enumerate(owners):
        for name, value in (
            ("apiVersion", owner.api_version),
            ("kind", owner.kind),
            ("name", owner.name),
            ("uid", owner.uid),
        ):
            if not value:
                errors.add(f"{path}[{index}].{name}", "required")
    controllers = [f"{owner.kind}/{owner.name}" for owner in owners if owner.controller]
    if len(controllers) > 1:
        errors.add(path, f"expected at most one owner with controller: true, got {', '.join(controllers)}")


def _check_controller(spec: types.ReplicationControllerSpec, path: str, errors: Errors) -> None:
    for field, name, value in (
        ("replicas", "replicas", spec.replicas),
        ("min_ready_seconds", "minReadySeconds", spec.min_ready_seconds),
    ):
        errors.integer(types.ReplicationControllerSpec, field, value, join(path, name))
    template = join(path, "template")
    if not spec.selector:
        errors.add(join(path, "selector"), "required: a selector, or labels in the template to make one from")
    check_labels(spec.selector, join(path, "selector"), errors)
    labels = spec.template.metadata.labels
    missing = {key: value for key, value in spec.selector.items() if labels.get(key) != value}
    if missing:
        wanted = ",".join(f"{key}={value}" for key, value in sorted(missing.items()))
        got = ",".join(f"{key}={value}" for key, value in sorted(labels.items())) or "no labels"
        errors.add(f"{template}.metadata.labels", f"expected what the selector wants ({wanted}), got {got}")
    _check_labels_and_annotations(spec.template.metadata, f"{template}.metadata", errors)
    check_pod_spec(spec.template.spec, f"{template}.spec", errors)
    if spec.template.spec.active_deadline_seconds is not None:
        errors.add(f"{template}.spec.activeDeadlineSeconds", "not in a template of pods that are replaced")
    if spec.template.spec.restart_policy != "Always":
        errors.add(
            f"{template}.spec.restartPolicy",
            f'expected "Always" in a template, got "{spec.template.spec.restart_policy}"',
        )


def _check_node(node: types.Node, path: str, errors: Errors) -> None:
    if node.spec.pod_cidr:
        try:
            ipaddress.ip_network(node.spec.pod_cidr)
        except ValueError:
            errors.add(
                join(path, "spec.podCIDR"),
                f'expected a network such as "10.5.34.0/24", got "{node.spec.pod_cidr}"',
            )
    check_taints(node.spec.taints, join(path, "spec.taints"), errors)
    for name, resources in (("capacity", node.status.capacity), ("allocatable", node.status.allocatable)):
        for resource, text in resources.items():
            field = join(path, f"status.{name}[{resource}]")
            try:
                if quantity.parse(text) < 0:
                    errors.add(field, f"expected a quantity ≥ 0, got {text}")
            except ValueError as error:
                errors.add(field, str(error))


def _check_lease(spec: types.LeaseSpec, path: str, errors: Errors) -> None:
    for field, name, value in (
        ("lease_duration_seconds", "leaseDurationSeconds", spec.lease_duration_seconds),
        ("lease_transitions", "leaseTransitions", spec.lease_transitions),
    ):
        errors.integer(types.LeaseSpec, field, value, join(path, name))


def _check_event(event: types.Event, path: str, errors: Errors) -> None:
    errors.integer(types.Event, "count", event.count, join(path, "count"))
    # events about objects without a namespace are kept in "default"
    about = event.involved_object.namespace or "default"
    if event.metadata.namespace and event.metadata.namespace != about:
        errors.add(
            join(path, "involvedObject.namespace"),
            f'expected the event\'s own namespace "{event.metadata.namespace}", got "{about}"',
        )
