"""Nodes that come, go, break and recover at random: what is never done to their pods, nor said of them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from node_world import NodeWorld, tolerant
from scheduler_objects import T0, pod

from podlane.api.meta import is_pod_ready
from podlane.api.taints import UNREACHABLE
from podlane.api.types import Toleration
from scheduler.nodes import PACE, Patience, Plan
from scheduler.nodeseen import ready_status

pytestmark = pytest.mark.unit

GRACE, NOT_READY, TOLERATED = 5.0, 20.0, 12.0

WHAT = ["goes", "comes", "breaks", "recovers", "speaks"]
"""What a node does; one that is silent may speak of its pods and itself, once more or already."""

moment = st.tuples(
    st.floats(0.1, 6),
    st.lists(st.tuples(st.integers(0, 7), st.sampled_from(WHAT)), max_size=4),
    st.booleans(),
)


class RandomNodes:
    """A cluster, and beside it the simplest record of what its nodes did: since when each was silent or broken."""

    def __init__(self, size: int, share: float) -> None:
        self.names = [f"n{i}" for i in range(size)]
        self.world = NodeWorld(*self.names, patience=Patience(GRACE, NOT_READY, share))
        patient = Toleration(key=UNREACHABLE, operator="Exists", toleration_seconds=int(TOLERATED))
        self.world.pods = [pod(f"on-{name}", node=name, ready=True) for name in self.names]
        self.world.pods += [tolerant(pod(f"patient-{name}", node=name, ready=True), patient) for name in self.names]
        self.silent_since: dict[str, float] = {}
        self.broken: set[str] = set()
        self.broken_since: dict[str, float] = {}
        self.at_once = max(1, int(share * size))
        self.given_up: list[tuple[float, str]] = []
        self.evicted: set[str] = set()
        self.marked: set[str] = set()
        self.said_ready = dict.fromkeys(self.names, True)

    def new_leader(self) -> None:
        """It begins with what is stored, and marks a pod once more if its agent said that it is ready."""
        self.world.seen = {}
        self.given_up.clear()
        self.marked.clear()
        self.said_ready = {name: ready_status(self.world.nodes[name]) == "True" for name in self.names}

    def do(self, index: int, what: str) -> None:
        name = self.names[index % len(self.names)]
        alive = self.world.alive
        (alive.discard if what == "goes" else alive.add if what == "comes" else lambda _: None)(name)
        if name in alive and what in {"breaks", "recovers"}:
            self.broken = (self.broken | {name}) if what == "breaks" else (self.broken - {name})
        if name in alive or what == "speaks":
            self.world.says(name, "False" if name in self.broken else "True")
            for item in [p for p in self.world.pods if p.spec.node_name == name]:
                self.world.pod_says(item.metadata.name, "True")

    def look(self, now: float) -> None:
        """What nobody looked at in between did not happen."""
        for name in self.names:
            for since, is_so in (
                (self.silent_since, name not in self.world.alive),
                (self.broken_since, name in self.broken),
            ):
                if is_so:
                    since.setdefault(name, now)
                else:
                    since.pop(name, None)

    def decide(self, now: float) -> None:
        self.look(now)
        size = len(self.names)
        silent, troubled = len(self.silent_since), len(self.silent_since.keys() | self.broken_since.keys())
        self.world.at(now)
        plan = self.world.last
        self._check_marks(plan)
        self._check_news(plan)
        for eviction in plan.evict:
            name = eviction.node
            since = self.silent_since if eviction.lost else self.broken_since
            silently = TOLERATED if eviction.pod.metadata.name.startswith("patient") else GRACE
            allowed = silently if eviction.lost else NOT_READY
            assert now - since[name] >= allowed - 1e-6, "a pod went before its time"
            assert eviction.pod.metadata.name not in self.evicted, "a pod went twice"
            self.evicted.add(eviction.pod.metadata.name)
            most = silent if eviction.lost else troubled
            assert most < size, "nothing was left"
            assert size < 3 or 2 * most <= size, "most of the cluster seemed gone"
        for name in {e.node for e in plan.evict}:
            if not any(gone == name and at >= self._began(name) for at, gone in self.given_up):
                self.given_up.append((now, name))
        recent = {name for at, name in self.given_up if at > now - PACE + 1e-6}
        assert len(recent) <= self.at_once, "more than the share went at once"
        assert plan.next_at is None or plan.next_at > T0 + now

    def _check_marks(self, plan: Plan) -> None:
        self.marked -= {p.metadata.name for p in self.world.pods if p.spec.node_name not in self.silent_since}
        silent, size = len(self.silent_since), len(self.names)
        for item in plan.unready:
            assert item.spec.node_name in self.silent_since, "its agent lives, and knows better"
            assert is_pod_ready(item)
            assert item.metadata.name not in self.marked, "a pod was marked twice in one outage"
            assert silent < size, "nobody was left"
            assert size < 3 or 2 * silent <= size, "most of the cluster seemed gone"
            self.marked.add(item.metadata.name)

    def _check_news(self, plan: Plan) -> None:
        for name in plan.tell:
            ready = plan.seen[name].told_ready
            assert ready != self.said_ready[name], "people heard the same twice"
            assert ready == (name not in self.silent_since and name not in self.broken)
            self.said_ready[name] = ready

    def _began(self, name: str) -> float:
        return self.silent_since.get(name, self.broken_since.get(name, 0.0))


@settings(max_examples=100)
@given(st.integers(1, 8), st.sampled_from([0.1, 0.25, 0.5]), st.lists(moment, min_size=1, max_size=30))
def test_random_comings_and_goings(size, share, history):
    run = RandomNodes(size, share)
    now = 0.0
    run.decide(now)
    for step, changes, new_leader in history:
        now += step
        for index, what in changes:
            run.do(index, what)
        if new_leader and not changes:
            run.new_leader()
        run.decide(now)
    # and when time is all that passes, everything that may go goes, and what is well stays
    for _ in range(60):
        now += 5
        run.decide(now)
    left = {p.spec.node_name for p in run.world.pods}
    healthy = set(run.names) - run.silent_since.keys() - run.broken_since.keys()
    assert {p.metadata.name for p in run.world.pods if p.spec.node_name in healthy} >= {
        name for n in healthy for name in (f"on-{n}", f"patient-{n}") if name not in run.evicted
    }
    if size < 3 and run.silent_since and len(run.silent_since) < size:
        assert not left & run.silent_since.keys()
    if size >= 3 and 2 * len(run.silent_since.keys() | run.broken_since.keys()) <= size:
        assert left <= healthy
    assert run.world.plan(now).next_at is None
    # the taints and what people heard say what is so
    for name in run.names:
        assert run.said_ready[name] == (name in healthy)
        keys = {t.split(":")[0] for t in run.world.taints(name)}
        assert keys == (
            {"unreachable"} if name in run.silent_since else {"not-ready"} if name in run.broken_since else set()
        )
