"""Placement of random clusters, held against a plain pass over everything for each pod."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from placement_clusters import NAMESPACES, clusters, nodes, pod_of
from placement_oracle import Cluster

from podlane.api.meta import namespaced_name
from podlane.api.types import Node, Pod
from scheduler.placement.model import Plan
from scheduler.placement.planner import Planner
from scheduler.view import Changes

pytestmark = pytest.mark.unit

EXAMPLES = 60


def on(pod: Pod, node: str) -> Pod:
    return replace(pod, spec=replace(pod.spec, node_name=node))


def leaves_for(priority: int, pod: Pod) -> bool:
    return pod.metadata.deletion_timestamp is not None and (pod.spec.priority or 0) < priority


def planner_of(members: list[Node], pods: list[Pod], *, alive=None, few: int = 8) -> Planner:
    planner = Planner(few)
    planner.update(
        pods=Changes({namespaced_name(pod): pod for pod in pods}, complete=True),
        nodes=Changes({node.metadata.name: node for node in members}, complete=True),
        alive=[node.metadata.name for node in members] if alive is None else alive,
        namespaces=NAMESPACES,
    )
    return planner


@settings(max_examples=EXAMPLES, deadline=None)
@given(clusters(), st.sampled_from([0, 8]))
def test_each_pod_goes_where_a_pass_over_all_nodes_would_put_it(cluster, few):
    members, running, _, waiting = cluster
    planner = planner_of(members, [*running, *waiting], few=few)
    plan = planner.plan()
    plain = Cluster(members, {n.metadata.name for n in members}, running, NAMESPACES)
    for placed in plan.bind if not plan.preempt else ():
        assert plain.best(placed.pod) == placed.node, str(plan)
        plain.pods.append(on(placed.pod, placed.node))
    for placed in plan.bind if plan.preempt else ():
        assert plain.fits(placed.pod, plain.nodes[placed.node]), str(plan)
        plain.pods.append(on(placed.pod, placed.node))
    assert len(plan.bind) + len(plan.unschedulable) == len(waiting)


@settings(max_examples=EXAMPLES, deadline=None)
@given(clusters())
def test_what_is_left_in_the_end_fits_nowhere(cluster):
    members, running, _, waiting = cluster
    pods = {namespaced_name(pod): pod for pod in (*running, *waiting)}
    planner = planner_of(members, [*pods.values()])
    plan = planner.plan()
    while plan.bind:
        bound = {namespaced_name(placed.pod): on(placed.pod, placed.node) for placed in plan.bind}
        pods.update(bound)
        planner.update(pods=Changes(bound))
        plan = planner.plan()
    plain = Cluster(members, {n.metadata.name for n in members}, pods.values(), NAMESPACES)
    held = [left.pod.spec.priority or 0 for left in plan.unschedulable if left.nominated]
    for left in plan.unschedulable:
        if (left.pod.spec.priority or 0) <= max(held, default=-1):
            continue  # room that is kept for others looks free
        assert not [name for name, node in plain.nodes.items() if plain.fits(left.pod, node)], str(plan)
        if not plan.preempt:
            assert left.why.startswith(f"0/{len(members)} nodes fit: ")
            groups = left.why.partition(": ")[2]
            assert sum(int(word) for word in groups.replace("(", " ( ").split() if word.isdigit()) >= len(members)


@settings(max_examples=EXAMPLES, deadline=None)
@given(clusters(most_templates=2, most_pods=8))
def test_victims_are_lower_and_not_one_too_many(cluster):
    members, running, kinds, _ = cluster
    urgent = {**kinds[0], "spec": {**kinds[0]["spec"], "priority": 100}}
    pod = pod_of(urgent, "urgent")
    plan = planner_of(members, [*running, pod]).plan()
    plain = Cluster(members, {n.metadata.name for n in members}, running, NAMESPACES)
    for preemption in plan.preempt:
        assert preemption.victims
        assert not [v for v in preemption.victims if (v.spec.priority or 0) >= 100 or leaves_for(100, v)]
        node = plain.nodes[preemption.node]
        names = {victim.metadata.name for victim in preemption.victims}
        names.update(p.metadata.name for p in running if leaves_for(100, p) and p.spec.node_name == preemption.node)
        assert all(victim.spec.node_name == preemption.node for victim in preemption.victims)
        plain.pods = [p for p in running if p.metadata.name not in names]
        assert plain.fits(pod, node)
        for victim in preemption.victims:
            plain.pods.append(victim)
            assert not plain.fits(pod, node)
            plain.pods.pop()
    if urgent["spec"].get("preemptionPolicy") == "Never":
        assert not plan.preempt


class Story:
    """A cluster that changes step by step; a planner is told of the changes only."""

    def __init__(self, members, running, kinds, waiting) -> None:
        self.kinds = kinds
        self.nodes: dict[str, Node] = {node.metadata.name: node for node in members}
        self.pods: dict[str, Pod] = {namespaced_name(pod): pod for pod in (*running, *waiting)}
        self.alive = set(self.nodes)
        self.planner = planner_of(members, [*self.pods.values()])
        self.made = 0

    def fresh(self) -> Planner:
        return planner_of([*self.nodes.values()], [*self.pods.values()], alive=self.alive)

    def put(self, *pods: Pod) -> None:
        changed = {namespaced_name(pod): pod for pod in pods}
        self.pods.update(changed)
        self.planner.update(pods=Changes(changed))

    def drop(self, key: str) -> None:
        del self.pods[key]
        self.planner.update(pods=Changes({key: None}))

    def step(self, data) -> None:
        pods = sorted(self.pods)
        names = sorted(self.nodes)
        what = data.draw(
            st.sampled_from(["new", "new", "gone", "ending", "node", "node gone", "silent", "bind elsewhere"])
        )
        if what == "new":
            self.made += 1
            self.put(pod_of(data.draw(st.sampled_from(self.kinds)), f"new{self.made}", created=10 + self.made))
        elif what == "gone" and pods:
            self.drop(data.draw(st.sampled_from(pods)))
        elif what == "ending" and pods:
            pod = self.pods[data.draw(st.sampled_from(pods))]
            self.put(replace(pod, metadata=replace(pod.metadata, deletion_timestamp=pod.metadata.creation_timestamp)))
        elif what == "node":
            name = data.draw(st.sampled_from([*names, "n8"]))
            self.nodes[name] = data.draw(nodes(name))
            self.alive.add(name)
            self.planner.update(nodes=Changes({name: self.nodes[name]}), alive=self.alive)
        elif what == "node gone" and names:
            name = data.draw(st.sampled_from(names))
            del self.nodes[name]
            self.planner.update(nodes=Changes({name: None}))
        elif what == "silent" and names:
            self.alive ^= {data.draw(st.sampled_from(names))}
            self.planner.update(alive=self.alive)
        elif what == "bind elsewhere" and pods and names:
            pod = self.pods[data.draw(st.sampled_from(pods))]
            if not pod.spec.node_name:
                self.put(on(pod, data.draw(st.sampled_from(names))))

    def carry_out(self, plan: Plan, data) -> None:
        """All of it, or all but some bindings, which fail."""
        done = [placed for placed in plan.bind if data.draw(st.integers(0, 3))]
        self.put(*(on(placed.pod, placed.node) for placed in done))


def numbers(planner: Planner) -> dict[str, object]:
    planner.state.settle()
    return {
        name: (node.cpu, node.memory, node.scored_cpu, dict(node.ports), sorted(node.pods), node.facts())
        for name, node in planner.state.nodes.items()
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(clusters(), st.data())
def test_what_is_kept_by_changes_is_what_a_fresh_look_finds(cluster, data):
    story = Story(*cluster)
    for _ in range(data.draw(st.integers(1, 8))):
        story.step(data)
        plan, again = story.planner.plan(), story.fresh().plan()
        assert [*plan.lines()][: len(plan.bind) + len(plan.preempt)] == [*again.lines()][
            : len(again.bind) + len(again.preempt)
        ]
        assert [(u.pod, u.nominated) for u in plan.unschedulable] == [(u.pod, u.nominated) for u in again.unschedulable]
        story.carry_out(plan, data)
        assert numbers(story.planner) == numbers(fresh := story.fresh())
        for count in story.planner.state.counts():
            assert count.values == fresh.state.count(count.key, count.selection).values
