"""The loops against a store that fails, mirrors that lag, nodes that die and leaders that change.

Whatever the interleaving: a leader never makes more pods than it was asked
for, never fills a node beyond its room, a deposed one changes nothing; and once
things are quiet the numbers are exact.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace
from scheduler_objects import T0, node, pod, rc, service, template
from scheduler_world import KINDS, LOOPS, Scheduler

from podlane.api.codec import decode
from podlane.api.meta import controller_of, is_pod_active, is_pod_finished, is_pod_ready
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ClusterConfig,
    Condition,
    EndpointSlice,
    Lease,
    Pod,
    ReplicationController,
)
from podlane.errors import Fenced, PodlaneError
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.interface import Compare, Delete, Put
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from scheduler.placement_loop import PlacementLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit

NODES = ("n1", "n2", "n3")
ROOM = 4


class Leader(Scheduler):
    """`bound`: the most it was asked for since it was last free of doubt."""

    bound = 0

    def desired(self) -> int:
        return sum(c.spec.replicas for c in self.sources[ReplicationController].objects.values())


class Cluster(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(0))
        self.registry.init_cluster(ClusterConfig())
        for name in NODES:
            self.registry.create(node(name, pods=str(ROOM)))
            self.node_returns(name)
        self.registry.create(rc(replicas=2))
        self.registry.create(service(cluster_ip="None"))
        self.deposed: Leader | None = None
        self.leaders = self.orphans = 0
        self.elect()

    # --- what people and machines do -------------------------------------------------

    @rule(replicas=st.integers(0, 6))
    def scale(self, replicas: int) -> None:
        if not self._controllers():
            return
        self._calmly(
            lambda: self.registry.modify(
                ReplicationController,
                "default",
                "web",
                lambda c: replace(c, spec=replace(c.spec, replicas=replicas)),
            )
        )

    @rule(how=st.sampled_from(["Background", "Foreground", "Orphan"]))
    def somebody_deletes_the_controller(self, how: str) -> None:
        if self._controllers():
            self._calmly(lambda: self.registry.delete(ReplicationController, "default", "web", propagation=how))

    @rule()
    def somebody_makes_the_controller(self) -> None:
        if not self._controllers():
            self._calmly(lambda: self.registry.create(rc(replicas=2)))

    @rule(which=st.integers(0, 9), grace=st.sampled_from([None, 0]))
    def somebody_deletes_a_pod(self, which: int, grace: int | None) -> None:
        if (target := self._nth_pod(which)) is not None:
            meta = target.metadata
            self._calmly(lambda: self.registry.delete(Pod, meta.namespace, meta.name, grace_seconds=grace))

    @rule(which=st.integers(0, 9), app=st.sampled_from(["web", "debug"]))
    def somebody_labels_a_pod(self, which: int, app: str) -> None:
        if (target := self._nth_pod(which)) is not None:
            changed = replace(target, metadata=replace(target.metadata, labels={"app": app}))
            self._calmly(lambda: self.registry.update(changed))

    @rule()
    def somebody_makes_a_pod(self) -> None:
        if sum(controller_of(p) is None for p in self._pods()) < 2:
            self.orphans += 1
            orphan = pod(f"orphan-{self.orphans}")
            self._calmly(lambda: self.registry.create(replace(orphan, spec=template().spec)))

    @rule(which=st.integers(0, 9), phase=st.sampled_from(["Running", "Failed"]))
    def a_pod_runs_or_fails(self, which: int, phase: str) -> None:
        target = self._nth_pod(which)
        if target is not None and target.spec.node_name in self._alive() and not is_pod_finished(target):
            self._report(target, phase)

    @rule()
    def agents_end_what_is_being_deleted(self) -> None:
        for target in self._pods():
            if target.metadata.deletion_timestamp is not None and target.spec.node_name in self._alive():
                self._calmly(lambda target=target: self.registry.delete_many([target], grace_seconds=0))

    @rule(name=st.sampled_from(NODES))
    def node_goes(self, name: str) -> None:
        self._calmly(lambda: self.store.txn([], [Delete(keys.key_for(Lease, NODE_LEASE_NAMESPACE, name))]))

    @rule(name=st.sampled_from(NODES))
    def node_returns(self, name: str) -> None:
        self._calmly(lambda: self.registry.put_node_lease(name, 0, 10))

    @rule(seconds=st.sampled_from([0.5, 3.0, 6.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # --- what goes wrong ---------------------------------------------------------------

    @rule(calls=st.integers(1, 3))
    def calls_fail(self, calls: int) -> None:
        self.store.faults.fail_next(calls)

    @rule(calls=st.integers(1, 2))
    def answers_are_lost(self, calls: int) -> None:
        self.store.faults.drop_after_apply(calls)

    @rule()
    def elect(self) -> None:
        """Another scheduler leads; the old one does not know yet."""
        self.store.faults = type(self.store.faults)(self.store)
        self.store.txn([], [Delete(keys.ELECTION_SCHEDULER)])
        self.leaders += 1
        won = self.store.txn([], [Put(keys.ELECTION_SCHEDULER, b"leader")]).revision
        self.deposed = getattr(self, "leader", None)
        fence = Compare.created_at(keys.ELECTION_SCHEDULER, won)
        self.leader = Leader(self.store, self.clock, fence, seed=self.leaders)

    # --- what the scheduler does ---------------------------------------------------------

    @rule(cls=st.sampled_from(KINDS), most=st.integers(1, 3))
    def mirror_takes_in(self, cls, most: int) -> None:
        self.leader.sources[cls].take(most)

    @rule()
    def mirrors_catch_up(self) -> None:
        self.leader.drain()

    @rule(cls=st.sampled_from(LOOPS))
    def sync(self, cls) -> None:
        self._sync(cls)

    @rule()
    def sync_replication_and_placement(self) -> None:
        self._sync(ReplicationLoop)
        self._sync(PlacementLoop)

    @precondition(lambda self: self.deposed is not None)
    @rule(cls=st.sampled_from(LOOPS))
    def a_deposed_leader_goes_on(self, cls) -> None:
        before = self._stored()
        try:
            self.deposed.loops[cls].sync()
        except Fenced:
            self.deposed = None
        except PodlaneError:
            pass  # the store failed before it could say so
        assert self._stored() == before

    # --- what must hold -------------------------------------------------------------------

    @invariant()
    def no_node_is_filled_beyond_its_room(self) -> None:
        for name in NODES:
            here = [p for p in self._pods() if p.spec.node_name == name and not is_pod_finished(p)]
            assert len(here) <= ROOM

    def teardown(self) -> None:
        if not hasattr(self, "leader"):
            return
        self.store.faults = type(self.store.faults)(self.store)
        for name in NODES:
            self.node_returns(name)
        for turn in range(12):
            if turn == 6:  # what there was has been deleted by now if it was to be
                self.somebody_makes_the_controller()
            self.leader.drain()
            for cls in LOOPS:
                self._sync(cls, must_succeed=True)
            self.agents_end_what_is_being_deleted()
            for target in self._pods():
                if target.spec.node_name and is_pod_active(target) and not is_pod_ready(target):
                    self._report(target, "Running")
            self.clock.advance(6)
        self._check_exact()

    def _check_exact(self) -> None:
        controller = self.registry.get(ReplicationController, "default", "web")
        assert all(controller_of(p) is None or self._is_owned(p) for p in self._pods())
        mine = [p for p in self._pods() if self._is_owned(p) and is_pod_active(p)]
        assert len(mine) == controller.spec.replicas
        assert all(p.spec.node_name for p in mine)
        status = controller.status
        assert (status.replicas, status.ready_replicas) == (len(mine), len(mine))
        assert status.observed_generation == controller.metadata.generation
        shown = [e for s in self.registry.list(EndpointSlice).items for e in s.endpoints]
        serving = [p for p in self._pods() if p.metadata.labels == {"app": "web"} and is_pod_active(p)]
        assert sorted(e.target_ref.name for e in shown) == sorted(p.metadata.name for p in serving)
        assert all(e.conditions.ready for e in shown)
        for cls in LOOPS:
            before = self._stored()
            self.leader.drain()
            self._sync(cls, must_succeed=True)
            assert self._stored() == before

    # --- inside -----------------------------------------------------------------------------

    def _sync(self, cls, *, must_succeed: bool = False) -> None:
        leader = self.leader
        before = {p.metadata.uid: self._is_owned(p) for p in self._pods()}
        leader.bound = max(leader.bound, leader.desired())
        try:
            leader.loops[cls].sync()
            settled = cls is ReplicationLoop
        except PodlaneError:
            assert not must_succeed
            settled = False
        active = [p.metadata.uid for p in self._pods() if self._is_owned(p) and is_pod_active(p)]
        if any(uid not in before for uid in active):
            # it made pods: then, but for those it adopted, there are no more than were ever asked for
            assert sum(before.get(uid, True) for uid in active) <= leader.bound
        if settled:
            leader.bound = 0

    def _stored(self) -> dict[str, int]:
        return {key: kv.mod_revision for key, kv in self.store._data.items()}

    def _pods(self) -> list[Pod]:
        prefix = keys.prefix_for(Pod)
        return [
            decode(Pod, kv.value, revision=kv.mod_revision)
            for key, kv in sorted(self.store._data.items())
            if key.startswith(prefix)
        ]

    def _nth_pod(self, which: int) -> Pod | None:
        pods = self._pods()
        return pods[which % len(pods)] if pods else None

    def _alive(self) -> set[str]:
        prefix = keys.prefix_for(Lease, NODE_LEASE_NAMESPACE)
        return {key.removeprefix(prefix) for key in self.store._data if key.startswith(prefix)}

    def _controllers(self) -> list[ReplicationController]:
        prefix = keys.prefix_for(ReplicationController)
        return [
            decode(ReplicationController, kv.value) for key, kv in self.store._data.items() if key.startswith(prefix)
        ]

    def _is_owned(self, p: Pod) -> bool:
        """By the controller that is stored now."""
        owner = controller_of(p)
        return owner is not None and owner.uid in {c.metadata.uid for c in self._controllers()}

    def _report(self, target: Pod, phase: str) -> None:
        conditions = (Condition(type="Ready", status="True" if phase == "Running" else "False"),)
        number = int(target.metadata.uid.replace("-", ""), 16)
        address = f"10.4.{number % 250}.{number // 250 % 250}"
        status = replace(target.status, phase=phase, conditions=conditions, pod_ip=address)
        self._calmly(lambda: self.registry.update(replace(target, status=status)))

    def _calmly(self, action) -> None:
        """Do it beside the faults, which are meant for the scheduler."""
        faults, self.store.faults = self.store.faults, type(self.store.faults)(self.store)
        try:
            action()
        finally:
            self.store.faults = faults


Cluster.TestCase.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
TestConvergence = Cluster.TestCase
