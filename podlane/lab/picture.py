"""A lab's state as a picture a person can read. Pure: objects in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from podlane.api.meta import is_pod_ready
from podlane.api.types import Node, Pod, Service

_WIDTH = 30


@dataclass(frozen=True, slots=True)
class Box:
    """One host: its title and the lines below it."""

    title: str
    lines: tuple[str, ...]


def draw(nodes: Sequence[Node], pods: Sequence[Pod], services: Sequence[Service], subnets: dict[str, str]) -> str:
    """Services above, hosts below, pods in their hosts; `subnets` by node name."""
    boxes = [_box(node, pods, subnets) for node in sorted(nodes, key=lambda n: n.metadata.name)]
    rows = [boxes[i : i + 3] for i in range(0, len(boxes), 3)]
    head = [_service_line(s) for s in services if s.spec.cluster_ip not in ("", "None")]
    body = [line for row in rows for line in _row(row)]
    return "\n".join([*head, *body])


def _service_line(service: Service) -> str:
    ports = ", ".join(f"{p.port}/{p.protocol} → {p.target_port or p.port}" for p in service.spec.ports)
    wanted = ",".join(f"{k}={v}" for k, v in sorted(service.spec.selector.items()))
    return f"  service {service.metadata.name}  {service.spec.cluster_ip}  {ports}  (pods with {wanted})"


def _box(node: Node, pods: Sequence[Pod], subnets: dict[str, str]) -> Box:
    name = node.metadata.name
    address = next((a.address for a in node.status.addresses if a.type == "InternalIP"), "no address")
    own = sorted((p for p in pods if p.spec.node_name == name), key=lambda p: p.metadata.name)
    lines = [address, f"subnet {subnets.get(name, 'none')}", ""]
    for pod in own:
        lines += [
            f"{'●' if is_pod_ready(pod) else '○'} {pod.metadata.name}",
            f"    {pod.status.pod_ip or '-'}",
        ]
    return Box(name, tuple(lines if own else [*lines, "no pods"]))


def _row(boxes: Sequence[Box]) -> list[str]:
    height = max(len(b.lines) for b in boxes)
    lines = ["  " + " ".join(f"┌─ {b.title} ".ljust(_WIDTH - 1, "─") + "┐" for b in boxes)]
    for i in range(height):
        cells = (b.lines[i] if i < len(b.lines) else "" for b in boxes)
        lines.append("  " + " ".join(f"│ {c[: _WIDTH - 4]:<{_WIDTH - 4}} │" for c in cells))
    lines.append("  " + " ".join("└" + "─" * (_WIDTH - 2) + "┘" for _ in boxes))
    return lines
