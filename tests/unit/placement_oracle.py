"""Placement as one would write it without a thought to speed: every rule looks at all nodes and all pods.

Written against the Kubernetes documentation of each field and the raw objects,
sharing nothing with scheduler.placement, so that the two can be held against
each other.
"""

from __future__ import annotations

import math

from podlane.api.meta import controller_of, get_condition
from podlane.api.quantity import bytes_, count, milli_cpu
from podlane.api.types import ZONE_LABEL, Node, Pod


def _expression(labels, key, operator, values) -> bool:
    there, value = key in labels, labels.get(key)
    return {
        "In": there and value in values,
        "NotIn": not there or value not in values,
        "Exists": there,
        "DoesNotExist": not there,
        "Gt": there and value.isdigit() and int(value) > int(values[0]) if values else False,
        "Lt": there and value.isdigit() and int(value) < int(values[0]) if values else False,
    }[operator]


def selects(selector, labels) -> bool:
    if selector is None:
        return False
    return all(labels.get(k) == v for k, v in selector.match_labels.items()) and all(
        _expression(labels, e.key, e.operator, e.values) for e in selector.match_expressions
    )


def _node_term(term, node: Node) -> bool:
    if not term.match_expressions and not term.match_fields:
        return False
    return all(_expression(node.metadata.labels, e.key, e.operator, e.values) for e in term.match_expressions) and all(
        _expression({"metadata.name": node.metadata.name}, e.key, e.operator, e.values) for e in term.match_fields
    )


def _tolerates(pod: Pod, key, value, effect) -> bool:
    for t in pod.spec.tolerations:
        if t.effect not in {"", effect} or t.key not in {"", key}:
            continue
        if t.operator == "Exists" or (t.key == key and t.value == value):
            return True
    return False


def _node_affinity(pod: Pod):
    affinity = pod.spec.affinity.node_affinity if pod.spec.affinity else None
    required = affinity.required_during_scheduling_ignored_during_execution if affinity else None
    return required, (affinity.preferred_during_scheduling_ignored_during_execution if affinity else ())


def _pod_terms(pod: Pod, which: str, required: bool):
    part = getattr(pod.spec.affinity, which) if pod.spec.affinity else None
    if part is None:
        return ()
    if required:
        return part.required_during_scheduling_ignored_during_execution
    return part.preferred_during_scheduling_ignored_during_execution


def _matches_node_affinity(pod: Pod, node: Node) -> bool:
    required, _ = _node_affinity(pod)
    return all(node.metadata.labels.get(k) == v for k, v in pod.spec.node_selector.items()) and (
        required is None or any(_node_term(term, node) for term in required.node_selector_terms)
    )


def request(pod: Pod) -> tuple[int, int]:
    def asked(container):
        both = {**container.resources.limits, **container.resources.requests}
        return milli_cpu(both.get("cpu", "0")), bytes_(both.get("memory", "0"))

    result = []
    for index in (0, 1):
        highest = running = 0
        for container in pod.spec.init_containers:
            amount = asked(container)[index]
            highest = max(highest, running + amount)
            if container.restart_policy == "Always":
                running += amount
        result.append(max(highest, running + sum(asked(c)[index] for c in pod.spec.containers)))
    return result[0], result[1]


def _ports(pod: Pod):
    return [
        (p.protocol, p.host_port, p.host_ip or "0.0.0.0") for c in pod.spec.containers for p in c.ports if p.host_port
    ]


class Cluster:
    """Nodes, and `pods`: those that are on them by spec.nodeName."""

    def __init__(self, nodes, alive, pods, namespaces=None) -> None:
        self.nodes: dict[str, Node] = {node.metadata.name: node for node in nodes}
        self.alive = set(alive)
        self.pods: list[Pod] = [p for p in pods if p.spec.node_name and p.status.phase not in {"Succeeded", "Failed"}]
        self.namespaces = namespaces or {}

    def on(self, node: Node) -> list[Pod]:
        return [p for p in self.pods if p.spec.node_name == node.metadata.name]

    # --- filters --------------------------------------------------------------------------

    def fits(self, pod: Pod, node: Node) -> bool:
        return (
            self._takes_pods(pod, node)
            and _matches_node_affinity(pod, node)
            and self._has_room(pod, node)
            and self._ports_free(pod, node)
            and self._spread_allows(pod, node)
            and self._affinity_allows(pod, node)
        )

    def _takes_pods(self, pod: Pod, node: Node) -> bool:
        if node.metadata.name not in self.alive:
            return False
        ready = get_condition(node.status.conditions, "Ready")
        if (ready is None or ready.status != "True") and not _tolerates(
            pod, "node.kubernetes.io/not-ready", "", "NoSchedule"
        ):
            return False
        if node.spec.unschedulable and not _tolerates(pod, "node.kubernetes.io/unschedulable", "", "NoSchedule"):
            return False
        return all(
            t.effect == "PreferNoSchedule" or _tolerates(pod, t.key, t.value, t.effect) for t in node.spec.taints
        )

    def _has_room(self, pod: Pod, node: Node) -> bool:
        here, has = self.on(node), node.status.allocatable
        cpu, memory = request(pod)
        return (
            len(here) < count(has["pods"])
            and (not cpu or sum(request(p)[0] for p in here) + cpu <= milli_cpu(has["cpu"]))
            and (not memory or sum(request(p)[1] for p in here) + memory <= bytes_(has["memory"]))
        )

    def _ports_free(self, pod: Pod, node: Node) -> bool:
        return not any(
            (protocol, number) == (other_protocol, other_number) and (ip == other_ip or "0.0.0.0" in {ip, other_ip})
            for protocol, number, ip in _ports(pod)
            for p in self.on(node)
            for other_protocol, other_number, other_ip in _ports(p)
        )

    def _eligible(self, pod: Pod, constraint, keys) -> list[Node]:
        return [
            node
            for node in self.nodes.values()
            if all(key in node.metadata.labels for key in keys)
            and (constraint.node_affinity_policy == "Ignore" or _matches_node_affinity(pod, node))
            and (
                constraint.node_taints_policy == "Ignore"
                or all(
                    t.effect == "PreferNoSchedule" or _tolerates(pod, t.key, t.value, t.effect)
                    for t in node.spec.taints
                )
            )
        ]

    def _spread_numbers(self, pod: Pod, constraint, keys) -> dict[str, int]:
        numbers: dict[str, int] = {}
        for node in self._eligible(pod, constraint, keys):
            domain = node.metadata.labels[constraint.topology_key]
            numbers[domain] = numbers.get(domain, 0) + sum(
                p.metadata.namespace == pod.metadata.namespace
                and p.metadata.deletion_timestamp is None
                and selects(constraint.label_selector, p.metadata.labels)
                for p in self.on(node)
            )
        return numbers

    def _spread_allows(self, pod: Pod, node: Node) -> bool:
        hard = [c for c in pod.spec.topology_spread_constraints if c.when_unsatisfiable == "DoNotSchedule"]
        keys = [c.topology_key for c in hard]
        for constraint in hard:
            if constraint.topology_key not in node.metadata.labels:
                return False
            numbers = self._spread_numbers(pod, constraint, keys)
            lowest = min(numbers.values(), default=0) if len(numbers) >= (constraint.min_domains or 1) else 0
            there = numbers.get(node.metadata.labels[constraint.topology_key], 0)
            if there + selects(constraint.label_selector, pod.metadata.labels) - lowest > constraint.max_skew:
                return False
        return True

    def _term_selects(self, term, carrier: Pod, other: Pod) -> bool:
        namespace = other.metadata.namespace
        if not term.namespaces and term.namespace_selector is None:
            near = namespace == carrier.metadata.namespace
        else:
            labels = {"kubernetes.io/metadata.name": namespace, **self.namespaces.get(namespace, {})}
            near = namespace in term.namespaces or selects(term.namespace_selector, labels)
        return near and selects(term.label_selector, other.metadata.labels)

    def _beside(self, node: Node, key: str) -> list[Pod]:
        """Pods on nodes of the same domain."""
        if key not in node.metadata.labels:
            return []
        return [
            p
            for p in self.pods
            if p.spec.node_name in self.nodes
            and self.nodes[p.spec.node_name].metadata.labels.get(key) == node.metadata.labels[key]
        ]

    def _affinity_allows(self, pod: Pod, node: Node) -> bool:
        near = _pod_terms(pod, "pod_affinity", True)

        def wanted(p: Pod) -> bool:
            return all(self._term_selects(t, pod, p) for t in near)

        if any(t.topology_key not in node.metadata.labels for t in near):
            return False
        if not all(any(wanted(p) for p in self._beside(node, t.topology_key)) for t in near):
            anywhere = any(
                wanted(p)
                for p in self.pods
                for t in near
                if p.spec.node_name in self.nodes and t.topology_key in self.nodes[p.spec.node_name].metadata.labels
            )
            if anywhere or not wanted(pod):
                return False
        for term in _pod_terms(pod, "pod_anti_affinity", True):
            if any(self._term_selects(term, pod, p) for p in self._beside(node, term.topology_key)):
                return False
        return not any(
            self._term_selects(term, p, pod) and p in self._beside(node, term.topology_key)
            for p in self.pods
            for term in _pod_terms(p, "pod_anti_affinity", True)
        )

    # --- scores ---------------------------------------------------------------------------

    def best(self, pod: Pod) -> str | None:
        ranked = [(self._rank(pod, node), name) for name, node in self.nodes.items() if self.fits(pod, node)]
        return min(ranked)[1] if ranked else None

    def _rank(self, pod: Pod, node: Node):
        avoided = sum(
            t.effect == "PreferNoSchedule" and not _tolerates(pod, t.key, t.value, t.effect) for t in node.spec.taints
        )
        preferred = sum(p.weight for p in _node_affinity(pod)[1] if _node_term(p.preference, node))
        preferred += self._pulled(pod, node)
        owner, zone = controller_of(pod), node.metadata.labels.get(ZONE_LABEL)
        siblings = [
            self.nodes[p.spec.node_name]
            for p in self.pods
            if owner is not None
            and (theirs := controller_of(p)) is not None
            and theirs.uid == owner.uid
            and p.metadata.deletion_timestamp is None
            and p.spec.node_name in self.nodes
        ]
        on_node = sum(n.metadata.name == node.metadata.name for n in siblings)
        in_zone = sum(zone is not None and n.metadata.labels.get(ZONE_LABEL) == zone for n in siblings)
        return avoided, -preferred, round(self._crowd(pod, node), 9), on_node, in_zone, self._load(pod, node)

    def _pulled(self, pod: Pod, node: Node) -> int:
        total = 0
        for which, sign in (("pod_affinity", 1), ("pod_anti_affinity", -1)):
            for weighted in _pod_terms(pod, which, False):
                term = weighted.pod_affinity_term
                beside = self._beside(node, term.topology_key)
                total += sign * weighted.weight * sum(self._term_selects(term, pod, p) for p in beside)
        for p in self.pods:
            theirs = [(w.weight, w.pod_affinity_term) for w in _pod_terms(p, "pod_affinity", False)]
            theirs += [(-w.weight, w.pod_affinity_term) for w in _pod_terms(p, "pod_anti_affinity", False)]
            theirs += [(1, term) for term in _pod_terms(p, "pod_affinity", True)]
            for weight, term in theirs:
                if self._term_selects(term, p, pod) and p in self._beside(node, term.topology_key):
                    total += weight
        return total

    def _crowd(self, pod: Pod, node: Node) -> float:
        soft = [c for c in pod.spec.topology_spread_constraints if c.when_unsatisfiable == "ScheduleAnyway"]
        keys = [c.topology_key for c in soft]
        total = 0.0
        for constraint in soft:
            numbers = self._spread_numbers(pod, constraint, keys)
            domain = node.metadata.labels.get(constraint.topology_key)
            if domain is None:
                return math.inf
            total += math.log(len(numbers) + 2) * numbers.get(domain, 0) + constraint.max_skew - 1
        return total

    def _load(self, pod: Pod, node: Node) -> float:
        cpu = memory = 0
        for p in (*self.on(node), pod):
            asked = request(p)
            cpu += asked[0] or 100
            memory += asked[1] or 200 * 2**20
        has = node.status.allocatable
        return max(cpu / (milli_cpu(has["cpu"]) or 1), memory / (bytes_(has["memory"]) or 1))
