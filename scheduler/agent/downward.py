"""What a pod says of itself: fields and resources, as variables and files have them. Pure.

Owns: the text of each field path. Invariant: the same text as Kubernetes', also
the form of whole label maps (key="value" lines, sorted) and the rounding of
resources (up, to whole divisors). Source: pkg/fieldpath/fieldpath.go and
pkg/api/v1/resource/helpers.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import ROUND_CEILING

from podlane.api import quantity
from podlane.api.types import Container, ObjectFieldSelector, Pod, ResourceFieldSelector
from podlane.api.validation_reference import subscript
from podlane.errors import PodlaneError

SERVICE_ACCOUNT = "default"
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f",
            "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """What pods may learn of their node. `ips` are its addresses, `allocatable` and `memory` (bytes) what it offers."""

    ips: tuple[str, ...] = ()
    allocatable: Mapping[str, str] = field(default_factory=dict)
    memory: int = 0

    @property
    def ip(self) -> str:
        return self.ips[0] if self.ips else ""


def field_value(selector: ObjectFieldSelector, pod: Pod, node: NodeFacts, ips: tuple[str, ...]) -> str:
    """The text of a field; `ips` are the pod's addresses. Raises PodlaneError for a path there is not."""
    path, meta = selector.field_path, pod.metadata
    if keyed := subscript(path):
        values = meta.labels if keyed[0] == "metadata.labels" else meta.annotations
        return values.get(keyed[1], "")
    plain = {
        "metadata.name": lambda: meta.name,
        "metadata.namespace": lambda: meta.namespace,
        "metadata.uid": lambda: meta.uid,
        "metadata.labels": lambda: format_map(meta.labels),
        "metadata.annotations": lambda: format_map(meta.annotations),
        "spec.nodeName": lambda: pod.spec.node_name,
        "spec.serviceAccountName": lambda: SERVICE_ACCOUNT,
        "status.hostIP": lambda: node.ip,
        "status.hostIPs": lambda: ",".join(node.ips),
        "status.podIP": lambda: ips[0] if ips else "",
        "status.podIPs": lambda: ",".join(ips),
    }
    if path not in plain:
        raise PodlaneError(f"unsupported fieldPath: {path}")
    return plain[path]()


def resource_value(selector: ResourceFieldSelector, pod: Pod, own: Container | None, node: NodeFacts) -> str:
    """A container's request or limit in units of the divisor, rounded up; a limit not set is the node's allocatable.

    `own` is the container that asks, None for a volume's file. Raises PodlaneError.
    """
    container = own if own is not None and not selector.container_name else _named(pod, selector.container_name)
    kind, _, name = selector.resource.partition(".")
    if kind not in {"limits", "requests"} or not name:
        raise PodlaneError(f"unsupported container resource : {selector.resource}")
    given = container.resources.limits if kind == "limits" else container.resources.requests
    value = quantity.parse(given.get(name, "0"))
    if not value and kind == "limits":
        value = quantity.parse(node.allocatable.get(name, "0"))
    divisor = quantity.parse(selector.divisor or "0") or quantity.parse("1")
    return str(int((value / divisor).to_integral_value(rounding=ROUND_CEILING)))


def _named(pod: Pod, name: str) -> Container:
    for container in (*pod.spec.containers, *pod.spec.init_containers):
        if container.name == name:
            return container
    raise PodlaneError(f"container {name} not found")


def format_map(values: Mapping[str, str]) -> str:
    return "\n".join(f"{name}={_quoted(values[name])}" for name in sorted(values))


def _quoted(text: str) -> str:
    """As Go's %q prints it."""
    return '"' + "".join(_ESCAPES.get(char, char if char.isprintable() else _escaped(char)) for char in text) + '"'


def _escaped(char: str) -> str:
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
