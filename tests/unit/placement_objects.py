"""Pods and nodes for placement's tests, with what they want spelled as in a manifest."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace
from scheduler_objects import node as plain_node
from scheduler_objects import pod as plain_pod

from podlane.api.meta import namespaced_name
from podlane.api.types import HOSTNAME_LABEL, ZONE_LABEL, Container, ContainerImage, Node, Pod, PodSpec, Taint
from scheduler.placement.model import Plan
from scheduler.placement.planner import Planner, plan
from scheduler.view import Changes

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"


def pod(name: str, wants: dict | None = None, *, app: str = "web", priority: int = 0, **options) -> Pod:
    """`wants`: further fields of the spec."""
    made = plain_pod(name, labels={"app": app}, **options)
    spec = {**msgspec.to_builtins(made.spec), **(wants or {})}
    return replace(made, spec=replace(msgspec.convert(spec, PodSpec), priority=priority))


def node(name: str, *, zone: str = "", taints: str = "", images: dict[str, int] | None = None, **options) -> Node:
    """`taints`: `key=value:effect`, apart by spaces; `images`: megabytes by name."""
    labels = {HOSTNAME_LABEL: name, **({ZONE_LABEL: zone} if zone else {}), **options.pop("labels", {})}
    made = plain_node(name, labels=labels, **options)
    had = tuple(ContainerImage(names=(image,), size_bytes=size << 20) for image, size in (images or {}).items())
    return replace(
        made,
        spec=replace(made.spec, taints=tuple(map(_taint, taints.split()))),
        status=replace(made.status, images=had),
    )


def _taint(text: str) -> Taint:
    (key, _, value), effect = text.partition(":")[0].partition("="), text.partition(":")[2]
    return msgspec.convert({"key": key, "value": value, "effect": effect}, Taint)


def near(app: str, key: str = ZONE_LABEL, **more) -> dict:
    return {"affinity": {"podAffinity": {REQUIRED: [_term(app, key, more)]}}}


def apart(app: str, key: str = HOSTNAME_LABEL, **more) -> dict:
    return {"affinity": {"podAntiAffinity": {REQUIRED: [_term(app, key, more)]}}}


def rather(which: str, app: str, key: str = HOSTNAME_LABEL, weight: int = 10) -> dict:
    return {"affinity": {which: {PREFERRED: [{"weight": weight, "podAffinityTerm": _term(app, key, {})}]}}}


def _term(app: str, key: str, more: dict) -> dict:
    return {"topologyKey": key, "labelSelector": {"matchLabels": {"app": app}}, **more}


def spread(key: str = ZONE_LABEL, when: str = "DoNotSchedule", skew: int = 1, app: str = "web", **more) -> dict:
    constraint = {
        "maxSkew": skew,
        "topologyKey": key,
        "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"app": app}},
        **more,
    }
    return {"topologySpreadConstraints": [constraint]}


def on_labels(*expressions: dict) -> dict:
    terms = [{"matchExpressions": [expression]} for expression in expressions]
    return {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": terms}}}}


def host_port(port: int, protocol: str = "TCP", ip: str = "") -> dict:
    ports = [{"containerPort": port, "hostPort": port, "protocol": protocol, "hostIP": ip}]
    return {"containers": [{"name": "main", "ports": ports}]}


def container(cpu: str = "", memory: str = "", **fields) -> dict:
    requests = {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v}
    return msgspec.to_builtins(msgspec.convert({"resources": {"requests": requests}, **fields}, Container))


def decide(nodes: list[Node], *pods: Pod, namespaces: dict | None = None) -> Plan:
    return plan(nodes, pods, {n.metadata.name for n in nodes}, namespaces)


class Told:
    """A planner that is told of changes only, and what it makes of them."""

    def __init__(self, nodes: list[Node], *pods: Pod) -> None:
        self.planner = Planner()
        self.alive = {n.metadata.name for n in nodes}
        self.planner.update(
            nodes=Changes({n.metadata.name: n for n in nodes}, complete=True),
            pods=Changes({}, complete=True),
            alive=self.alive,
        )
        self.put(*pods)

    def put(self, *objects: Pod | Node) -> None:
        pods = {namespaced_name(o): o for o in objects if isinstance(o, Pod)}
        nodes = {o.metadata.name: o for o in objects if isinstance(o, Node)}
        self.alive |= nodes.keys()
        self.planner.update(pods=Changes(pods), nodes=Changes(nodes), alive=self.alive)

    def gone(self, obj: Pod) -> None:
        self.planner.update(pods=Changes({namespaced_name(obj): None}))

    def plan(self) -> Plan:
        """What is bound is bound, as the loop would do it."""
        plan = self.planner.plan()
        self.put(*(replace(p.pod, spec=replace(p.pod.spec, node_name=p.node)) for p in plan.bind))
        return plan
