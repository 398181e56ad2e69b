"""The text of `describe node`.

Owns: what is shown of a node, and the sums over its pods. Pure. Source: kubectl's
(describeNode, describeNodeResource), with a row for the number of pods.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal

from podlane.api import quantity, taints
from podlane.api.meta import is_pod_finished
from podlane.api.podresources import Amounts, limits_of, requests_of
from podlane.api.types import Node, Pod
from podlane.cli.description_lines import COLUMN, Lines, condition_lines, field, grid, indented, labels, several, top
from podlane.cli.tables import node_roles
from podlane.runtime.text import NONE, UNKNOWN, age, rfc1123


def describe_node(node: Node, pods: Sequence[Pod], now: datetime) -> Lines:
    """`pods` are all those bound to it."""
    info, status = node.status.node_info, node.status
    yield from top(node)
    yield field("Roles", node_roles(node))
    yield from labels(node)
    yield field("CreationTimestamp", " " + rfc1123(node.metadata.creation_timestamp))
    yield from several("Taints", [taints.spelled(taint) for taint in node.spec.taints])
    yield field("Unschedulable", str(node.spec.unschedulable).lower())
    yield from condition_lines(status.conditions, full=True)
    yield "Addresses:"
    yield from indented(f"{a.type + ':':<12}{a.address}" for a in status.addresses)
    for name, amounts in (("Capacity", status.capacity), ("Allocatable", status.allocatable)):
        yield f"{name}:"
        yield from indented(f"{key + ':':<20}{amounts[key]}" for key in sorted(amounts))
    yield "System Info:"
    rows = (
        ("Machine ID", info.machine_id),
        ("Kernel Version", info.kernel_version),
        ("OS Image", info.os_image),
        ("Operating System", info.operating_system),
        ("Architecture", info.architecture),
        ("Container Runtime", info.container_runtime_version),
        ("Agent Version", info.kubelet_version),
    )
    yield from indented(f"{name + ':':<20}{value}" for name, value in rows)
    yield field("PodCIDR", node.spec.pod_cidr or NONE)
    yield f"{'Pods:':<{COLUMN}}({len(pods)} in total)"
    if pods:
        yield from grid(("Namespace", "Name", "CPU Requests", "Memory Requests", "Age"), *_pod_rows(pods, now))
    yield from _allocated(node, pods)


def _pod_rows(pods: Sequence[Pod], now: datetime) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for pod in sorted(pods, key=lambda p: (p.metadata.namespace, p.metadata.name)):
        requests = requests_of(pod.spec)
        cpu, memory = int(requests.get("cpu", 0) * 1000), int(requests.get("memory", 0))
        rows.append(
            (
                pod.metadata.namespace,
                pod.metadata.name,
                f"{cpu}m" if cpu else "0",
                f"{memory // 2**20}Mi" if memory else "0",
                age(pod.metadata.creation_timestamp, now),
            )
        )
    return rows


def _allocated(node: Node, pods: Sequence[Pod]) -> Lines:
    """What the pods that are not finished ask for, and how much of the allocatable that is."""
    yield "Allocated resources:"
    yield "  (Total limits may be over 100 percent, i.e., overcommitted.)"
    specs = [pod.spec for pod in pods if not is_pod_finished(pod)]
    requests, limits = _total(map(requests_of, specs)), _total(map(limits_of, specs))
    yield from grid(
        ("Resource", "Requests", "Limits"),
        *(
            (name, *(f"{spelled(total[name])} ({_share(node, name, total[name])})" for total in (requests, limits)))
            for name, spelled in (("cpu", _cpu), ("memory", _memory))
        ),
        ("pods", f"{len(specs)} ({_share(node, 'pods', Decimal(len(specs)))})", ""),
    )


def _total(amounts: Iterable[Amounts]) -> Amounts:
    total = {"cpu": Decimal(0), "memory": Decimal(0)}
    for each in amounts:
        for name in total:
            total[name] += each.get(name, 0)
    return total


def _cpu(value: Decimal) -> str:
    return quantity.format_cpu(int(value * 1000))


def _memory(value: Decimal) -> str:
    return quantity.format_bytes(int(value))


def _share(node: Node, name: str, value: Decimal) -> str:
    """In percent of what the node offers, in whole ones as kubectl's."""
    try:
        offered = quantity.parse(node.status.allocatable.get(name, "0"))
    except ValueError:
        return UNKNOWN
    return f"{int(value * 100 / offered)}%" if offered > 0 else UNKNOWN
