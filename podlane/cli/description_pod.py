"""The text of `describe` for a pod.

Pure, as description.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from podlane.api.meta import controller_of
from podlane.api.podresources import qos_class
from podlane.api.types import Pod, PodSpec, Toleration, TopologySpreadConstraint, Volume
from podlane.cli.description_container import containers
from podlane.cli.description_lines import Lines, condition_lines, field, indented, labels, mapping, several, top
from podlane.runtime.text import NONE, pairs, rfc1123

UNSET = "<unset>"


def describe_pod(pod: Pod) -> Lines:
    spec, status = pod.spec, pod.status
    yield from top(pod)
    yield field("Priority", spec.priority or 0)
    if spec.priority_class_name:
        yield field("Priority Class", spec.priority_class_name)
    host = f"/{status.host_ip}" if status.host_ip else ""
    yield field("Node", (spec.node_name + host) or NONE)
    yield field("Start Time", rfc1123(status.start_time) if status.start_time else NONE)
    yield from labels(pod)
    yield from _status(pod)
    yield field("IP", status.pod_ip or NONE)
    owner = controller_of(pod)
    if owner is not None:
        yield field("Controlled By", f"{owner.kind}/{owner.name}")
    if status.nominated_node_name:
        yield field("Nominated Node", status.nominated_node_name)
    yield from containers(spec, status.container_statuses, status.init_container_statuses)
    yield from condition_lines(status.conditions)
    yield from volumes(spec.volumes)
    yield field("QoS Class", status.qos_class or qos_class(spec))
    yield field("Restart Policy", spec.restart_policy)
    yield from placement(spec)


def _status(pod: Pod) -> Lines:
    ends = pod.metadata.deletion_timestamp
    if ends is not None:
        yield field("Status", f"Terminating (ends {rfc1123(ends)})")
        yield field("Grace Period", f"{pod.metadata.deletion_grace_period_seconds or 0}s")
    else:
        yield field("Status", pod.status.phase)
    for name, text in (("Reason", pod.status.reason), ("Message", pod.status.message)):
        if text:
            yield field(name, text)


def placement(spec: PodSpec) -> Lines:
    """Where it wants to be."""
    yield from mapping("Node-Selectors", spec.node_selector)
    yield from several("Tolerations", [_toleration(toleration) for toleration in spec.tolerations])
    if spec.topology_spread_constraints:
        yield from several("Spread", [_spread(constraint) for constraint in spec.topology_spread_constraints])


def _toleration(toleration: Toleration) -> str:
    """`dedicated=web:NoExecute for 30s`, `gpu:NoSchedule op=Exists`, `op=Exists`."""
    text = toleration.key
    if toleration.value:
        text += f"={toleration.value}"
    if toleration.effect:
        text += f":{toleration.effect}"
    if toleration.operator == "Exists":
        text += " op=Exists" if text else "op=Exists"
    if toleration.toleration_seconds is not None:
        text += f" for {toleration.toleration_seconds}s"
    return text


def _spread(constraint: TopologySpreadConstraint) -> str:
    selector = constraint.label_selector
    selected = pairs(selector.match_labels) if selector is not None else NONE
    return (
        f"{constraint.topology_key}:{constraint.when_unsatisfiable} when max skew {constraint.max_skew} "
        f"is exceeded for selector {selected}"
    )


def volumes(each: Sequence[Volume]) -> Lines:
    if not each:
        yield field("Volumes", NONE)
        return
    yield "Volumes:"
    for volume in each:
        yield f"  {volume.name}:"
        yield from indented((f"{name + ':':<14}{value}" for name, value in _volume(volume)), 4)


def _volume(volume: Volume) -> list[tuple[str, str]]:
    if volume.host_path is not None:
        return [
            ("Type", "HostPath (bare host directory volume)"),
            ("Path", volume.host_path.path),
            ("HostPathType", volume.host_path.type),
        ]
    if volume.config_map is not None:
        return [
            ("Type", "ConfigMap (a volume populated by a ConfigMap)"),
            ("Name", volume.config_map.name),
            ("Optional", str(volume.config_map.optional).lower()),
        ]
    if volume.secret is not None:
        return [
            ("Type", "Secret (a volume populated by a Secret)"),
            ("SecretName", volume.secret.secret_name),
            ("Optional", str(volume.secret.optional).lower()),
        ]
    if volume.downward_api is not None:
        read = [
            f"{(item.field_ref.field_path if item.field_ref else '')}"
            f"{(item.resource_field_ref.resource if item.resource_field_ref else '')} -> {item.path}"
            for item in volume.downward_api.items
        ]
        return [
            ("Type", "DownwardAPI (a volume populated by information about the pod)"),
            ("Items", ", ".join(read) or NONE),
        ]
    source = volume.empty_dir
    return [
        ("Type", "EmptyDir (a temporary directory that shares a pod's lifetime)"),
        ("Medium", source.medium if source is not None else ""),
        ("SizeLimit", (source.size_limit if source is not None else "") or UNSET),
    ]
