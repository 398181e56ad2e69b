"""Whom the leader believes what: reports of pods and states in, text out; then the loop on a store in memory."""

from __future__ import annotations

import random
from datetime import datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import T0, at, node, pod
from scheduler_world import Events, Scheduler

from podlane.api.codec import encode
from podlane.api.meta import get_condition, is_pod_ready
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ClusterConfig,
    Condition,
    ContainerStatus,
    Lease,
    Node,
    NodeAddress,
    NodeSpec,
    Pod,
    PodIP,
    PodReport,
    PodStatus,
)
from podlane.errors import Fenced, NotFound
from podlane.runtime.clock import FakeClock
from podlane.store import keys
from podlane.store.enrolled import HostRecord
from podlane.store.interface import Compare, Delete, Put
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry
from podlane.store.reports import Outbox
from scheduler import reports
from scheduler.reports_loop import LARGEST, SETTLE, ReportsLoop

pytestmark = pytest.mark.unit


def conditions(ready: bool, since: float = 0) -> tuple[Condition, ...]:
    said = "True" if ready else "False"
    return tuple(
        Condition(type=kind, status=status, last_transition_time=at(since))
        for kind, status in (("Initialized", "True"), ("ContainersReady", said), ("Ready", said))
    )


def status(phase: str = "Running", *, ready: bool = True, ip: str = "10.5.1.2", since: float = 0, **more) -> PodStatus:
    ips = (PodIP(ip=ip),) if ip else ()
    return PodStatus(phase=phase, conditions=conditions(ready, since), pod_ip=ip, pod_ips=ips, **more)


# --- the plan -------------------------------------------------------------------------------------

NODE1 = replace(node("n1"), spec=NodeSpec(pod_cidr="10.5.1.0/24", pod_cidrs=("10.5.1.0/24", "fd00:5:1::/64")))
NODE1 = replace(
    NODE1, status=replace(NODE1.status, addresses=(NodeAddress(type="InternalIP", address="192.168.64.11"),))
)


def item(
    it: Pod | None, said: PodStatus, *, on: str = "n1", uid: str = "uid-p", removed: bool = False, revision: int = 9
):
    report = PodReport(uid=uid, status=said, removed=removed)
    return reports.Item(keys.ReportKey(on, "", "default", "p"), revision, report, it)


def reporter(of: Node | None = NODE1, *, alive: bool = True, **enrolled: HostRecord) -> dict[str, reports.Reporter]:
    return {"n1": reports.Hosts.of(enrolled).reporter("n1", of, alive=alive)}


def planned(*items: reports.Item, alive: bool = True, of: Node | None = NODE1, **enrolled: HostRecord) -> str:
    return str(reports.plan(items, reporter(of, alive=alive, **enrolled), T0))


def test_a_status_is_stored_once() -> None:
    p = pod("p", node="n1")
    assert planned(item(p, status())) == "store status of pod default/p: Running ready 10.5.1.2"
    (stored,) = reports.plan([item(p, status())], reporter(), T0).store
    assert planned(item(stored.pod, status())) == ""


def test_only_the_node_of_the_pod_is_believed() -> None:
    assert planned(item(pod("p", node="n2"), status())) == (
        "drop report of node n1 on pod default/p: the pod is not bound to that node"
    )
    assert planned(item(pod("p"), status())) == (
        "drop report of node n1 on pod default/p: the pod is not bound to that node"
    )
    assert planned(item(pod("p", node="n1"), status(), uid="uid-before")) == (
        "drop report of node n1 on pod default/p: the pod of that name is another"
    )
    assert planned(item(None, status())) == "drop report of node n1 on pod default/p: there is no such pod"


def test_what_is_not_the_agents_to_say_stays() -> None:
    placed = Condition(type="PodScheduled", status="True", last_transition_time=at(-5))
    gate = Condition(type="example.com/gate", status="False")
    p = replace(pod("p", node="n1"), status=PodStatus(conditions=(placed, gate), qos_class="Burstable"))
    lie = Condition(type="PodScheduled", status="False", reason="Unschedulable")
    said = status(qos_class="Guaranteed", nominated_node_name="n9", container_statuses=(ContainerStatus(name="main"),))
    said = replace(said, conditions=(lie, replace(gate, status="True"), *said.conditions))
    (stored,) = reports.plan([item(p, said)], reporter(), T0).store
    new = stored.pod.status
    assert new.conditions[:2] == (placed, gate)
    assert (new.qos_class, new.nominated_node_name, new.phase) == ("Burstable", "", "Running")
    assert new.container_statuses == said.container_statuses
    # who made a pod for a node has nobody who says that it is placed
    authored = replace(p, status=PodStatus())
    (stored,) = reports.plan([item(authored, said)], reporter(), T0).store
    assert {c.type for c in stored.pod.status.conditions} == {"PodScheduled", "Initialized", "ContainersReady", "Ready"}


def test_a_finished_pod_stays_finished() -> None:
    done = replace(pod("p", node="n1"), status=status("Succeeded", ready=False))
    assert planned(item(done, status())) == ""
    assert planned(item(done, status("Failed", ready=False))) == ""
    more = status("Succeeded", ready=False, container_statuses=(ContainerStatus(name="main"),))
    assert planned(item(done, more)) == "store status of pod default/p: Succeeded not ready 10.5.1.2"


@pytest.mark.parametrize(
    ("ip", "on_host", "becomes"),
    [
        ("10.5.1.9", False, "store status of pod default/p: Running ready 10.5.1.9"),
        ("fd00:5:1::9", False, "store status of pod default/p: Running ready fd00:5:1::9"),
        ("192.168.64.11", True, "store status of pod default/p: Running ready 192.168.64.11"),
        ("10.5.2.9", False, "has the address '10.5.2.9', and not one of 10.5.1.0/24"),
        ("fd00:5:2::9", False, "has the address 'fd00:5:2::9', and not one of fd00:5:1::/64"),
        ("192.168.64.11", False, "has the address '192.168.64.11', and not one of 10.5.1.0/24"),
        ("192.168.64.12", True, "has the address '192.168.64.12', and not one of 192.168.64.11/32"),
        ("ten", False, "has the address 'ten', which is none"),
    ],
)
def test_addresses(ip: str, on_host: bool, becomes: str) -> None:
    p = pod("p", node="n1")
    p = replace(p, spec=replace(p.spec, host_network=on_host))
    refusal = f"refuse report of node n1 on pod default/p: it says that the pod {becomes}"
    assert planned(item(p, status(ip=ip))) == (becomes if becomes.startswith("store") else refusal)


def test_an_address_of_a_node_not_known_yet_and_one_the_pod_had() -> None:
    unreadable = replace(NODE1, spec=NodeSpec(pod_cidr="all of it", pod_cidrs=("*",)))
    for of in (None, node("n1"), unreadable):
        why = "it says that the pod has the address '10.5.1.2', and its node's are not known"
        assert (
            planned(item(pod("p", node="n1"), status()), of=of) == f"refuse report of node n1 on pod default/p: {why}"
        )
    moved = replace(NODE1, spec=NodeSpec(pod_cidr="10.5.7.0/24"))
    had = replace(pod("p", node="n1"), status=status())
    assert planned(item(had, status(ready=False)), of=moved) == (
        "store status of pod default/p: Running not ready 10.5.1.2"
    )


def test_of_an_enrolled_node_its_record_is_believed_and_not_what_it_says_itself() -> None:
    enrolled = {
        "n1": HostRecord(("192.168.64.11",), "10.5.3.0-24&fd00:5:3::-64"),
        "n2": HostRecord(("192.168.64.12",), "10.5.1.0-24"),
    }
    p = pod("p", node="n1")
    assert planned(item(p, status(ip="10.5.1.9")), **enrolled).endswith("'10.5.1.9', and not one of 10.5.3.0/24")
    assert planned(item(p, status(ip="10.5.3.9")), of=None, **enrolled).endswith("Running ready 10.5.3.9")
    assert planned(item(p, status(ip="fd00:5:3::9")), **enrolled).endswith("Running ready fd00:5:3::9")
    addresses = [NodeAddress(type="InternalIP", address=f"192.168.64.{number}") for number in (12, 111)]
    liar = replace(NODE1, status=replace(NODE1.status, addresses=tuple(addresses)))
    p = replace(p, spec=replace(p.spec, host_network=True))
    for own in ("192.168.64.11", "192.168.64.111"):
        assert planned(item(p, status(ip=own)), of=liar, **enrolled).endswith(f"Running ready {own}")
    assert "the address '192.168.64.12', and not one" in planned(
        item(p, status(ip="192.168.64.12")), of=liar, **enrolled
    )


def test_a_silent_node_is_not_believed_but_for_what_has_ended() -> None:
    assert planned(item(pod("p", node="n1"), status()), alive=False) == ""
    ending = pod("p", node="n1", terminating=True)
    assert planned(item(ending, status(), removed=True), alive=False) == "remove pod default/p: n1 has ended it"


def test_a_pod_marked_while_its_node_was_silent_waits_for_a_new_word() -> None:
    marked = replace(pod("p", node="n1", version=20), status=replace(status(), conditions=_marked(7)))
    assert planned(item(marked, status(), revision=19)) == ""
    said_again = item(marked, status(since=1), revision=21)
    assert planned(said_again) == "store status of pod default/p: Running ready 10.5.1.2"
    (stored,) = reports.plan([said_again], reporter(), T0 + 30).store
    ready = get_condition(stored.pod.status.conditions, "Ready")
    assert ready is not None
    assert ready.last_transition_time == at(30)  # it is ready again since now, whatever its agent knows


def _marked(since: float) -> tuple[Condition, ...]:
    return tuple(
        replace(c, status="False", last_transition_time=at(since)) if c.type == "Ready" else c for c in conditions(True)
    )


def test_only_what_was_told_to_end_is_removed() -> None:
    running = pod("p", node="n1")
    why = "it says that nothing is left of the pod, which nobody has deleted"
    assert planned(item(running, status(), removed=True)) == f"refuse report of node n1 on pod default/p: {why}"
    finished = replace(running, status=status("Failed", ready=False))
    assert planned(item(finished, status(), removed=True)) == f"refuse report of node n1 on pod default/p: {why}"
    ending = pod("p", node="n1", terminating=True)
    assert planned(item(ending, status(), removed=True)) == "remove pod default/p: n1 has ended it"
    kept = replace(ending.metadata, finalizers=("example.com/x",), deletion_grace_period_seconds=0)
    assert planned(item(replace(ending, metadata=kept), status(), removed=True)) == ""  # it only waits for others


# --- the loop -------------------------------------------------------------------------------------


class World:
    """A node that lives, a pod on it, and a leader."""

    def __init__(self) -> None:
        self.clock = FakeClock(T0)
        self.store = MemoryStore(self.clock)
        self.registry = Registry(self.store, clock=self.clock, rng=random.Random(5))
        self.registry.init_cluster(ClusterConfig())
        self.registry.create(NODE1)
        self.beat()
        self.p = self.registry.create(pod("p", node="n1"))
        self.scheduler = Scheduler(self.store, self.clock)
        self.outbox = Outbox(self.store, "n1")

    def beat(self) -> None:
        self.registry.put_node_lease("n1", 0, 10)

    def lose(self) -> None:
        self.store.txn([], [Delete(keys.key_for(Lease, NODE_LEASE_NAMESPACE, "n1"))])

    def report(self, said: PodStatus, *, removed: bool = False, uid: str = "") -> None:
        self.outbox.write({"default/p": PodReport(uid=uid or self.p.metadata.uid, status=said, removed=removed)})

    def sync(self) -> int:
        """The leader sees everything and acts; returns how often it wrote."""
        before = self.store.list("/").revision
        self.scheduler.drain()
        self.scheduler.sync(ReportsLoop)
        return self.store.list("/").revision - before

    def settle(self) -> None:
        """Until the leader is certain."""
        self.sync()
        self.clock.advance(SETTLE)
        self.sync()

    def pod(self) -> Pod:
        return self.registry.get(Pod, "default", "p")

    def reported(self) -> list[str]:
        return [kv.key for kv in self.store.list(keys.REPORTS).items]

    @property
    def events(self) -> Events:
        return self.scheduler.events


@pytest.fixture
def world() -> World:
    return World()


def test_a_report_is_carried_over_once_and_stays_until_its_pod_goes(world: World) -> None:
    world.report(status())
    assert world.sync() == 1
    assert is_pod_ready(world.pod())
    assert is_pod_ready(world.scheduler.context.snapshot.pods.get("default/p"))  # before the watch has told of it
    assert world.sync() == 0
    assert world.reported() == ["/podlane/reports/n1/pods/default/p"]
    world.registry.delete(Pod, "default", "p")
    world.report(status(ready=False), removed=True)
    assert world.sync() == 1
    with pytest.raises(NotFound):
        world.pod()
    assert world.reported() == []
    world.report(status())  # it was on its way
    world.settle()
    assert world.reported() == []


def test_what_others_write_over_a_report_is_made_right_and_theirs_is_kept(world: World) -> None:
    world.report(status())
    world.sync()
    old = world.pod()
    meta = replace(old.metadata, labels={"app": "other"})
    world.registry.update(replace(old, metadata=meta, status=replace(old.status, phase="Pending", pod_ip="")))
    assert world.sync() == 1
    assert (world.pod().status.phase, world.pod().metadata.labels) == ("Running", {"app": "other"})


def test_reports_of_what_is_not_the_nodes_are_taken_away(world: World) -> None:
    world.report(status(), uid="uid-before")
    elsewhere = Outbox(world.store, "n2")
    elsewhere.write({"default/p": PodReport(uid=world.p.metadata.uid, status=status(ready=False))})
    world.store.txn([], [Put(f"{keys.REPORTS}n1/pods/default/q", b"{"), Put(f"{keys.REPORTS}n1/nonsense", b"")])
    huge = PodReport(uid=world.p.metadata.uid, status=status(message="m" * LARGEST))
    world.store.txn([], [Put(f"{keys.REPORTS}n3/pods/default/p", encode(huge))])
    world.settle()
    assert world.reported() == []
    assert world.pod() == world.p


def test_what_was_seen_too_early_is_not_taken_away(world: World) -> None:
    """The mirrors of pods and of reports are as late as they like."""
    world.registry.delete(Pod, "default", "p", grace_seconds=0)
    world.sync()
    world.p = world.registry.create(pod("p", node="n1"))
    world.report(status())
    world.scheduler.sources[PodReport].take(9)
    for _ in range(2):
        world.scheduler.sync(ReportsLoop)
        world.clock.advance(SETTLE)
    assert len(world.reported()) == 1
    world.sync()
    assert is_pod_ready(world.pod())


def test_a_refusal_is_told_once_and_holds_until_what_speaks_against_it_changes(world: World) -> None:
    world.report(status(ip="10.5.9.9"))
    world.sync()
    assert (world.events.lines, world.scheduler.wakes) == ([], [("reports", SETTLE)])
    world.clock.advance(SETTLE)
    world.sync()
    world.registry.modify(Pod, "default", "p", lambda p: replace(p, metadata=replace(p.metadata, labels={"a": "b"})))
    world.sync()
    why = "it says that the pod has the address '10.5.9.9', and not one of 10.5.1.0/24"
    assert world.events.lines == [f"Warning ReportRefused p: Node n1: {why}"]
    assert world.pod().status.pod_ip == ""
    world.registry.modify(Node, "", "n1", lambda n: replace(n, spec=NodeSpec(pod_cidr="10.5.9.0/24")))
    world.sync()
    assert world.pod().status.pod_ip == "10.5.9.9"
    enrolled = msgspec.json.encode(HostRecord(subnets="10.5.8.0-24"))
    world.store.txn([], [Put(keys.enrolled_node_key("n1"), enrolled)])
    world.report(status(ip="10.5.9.10"))
    world.sync()
    assert world.pod().status.pod_ip == "10.5.9.9"
    world.store.txn([], [Delete(keys.enrolled_node_key("n1"))])
    world.sync()
    assert world.pod().status.pod_ip == "10.5.9.10"


def test_a_word_that_is_not_the_last_any_more_is_not_carried_over(world: World) -> None:
    world.report(status())
    world.scheduler.drain()
    world.report(status(ready=False))
    world.scheduler.sync(ReportsLoop)
    assert world.pod() == world.p
    world.sync()
    assert (world.pod().status.phase, is_pod_ready(world.pod())) == ("Running", False)


def test_an_agent_that_knows_sooner_is_not_accused(world: World) -> None:
    world.registry.delete(Pod, "default", "p")
    world.report(status(), removed=True)
    world.scheduler.sources[PodReport].take(9)
    world.scheduler.sync(ReportsLoop)
    world.sync()
    world.clock.advance(SETTLE)
    world.sync()
    assert world.events.lines == []
    with pytest.raises(NotFound):
        world.pod()


def test_a_node_that_was_silent_is_believed_when_it_speaks(world: World) -> None:
    world.report(status())
    world.sync()
    world.lose()
    world.registry.modify(Pod, "default", "p", lambda p: replace(p, status=replace(p.status, conditions=_marked(60))))
    world.sync()
    assert not is_pod_ready(world.pod())
    world.beat()
    world.sync()
    assert not is_pod_ready(world.pod())
    world.report(status())
    world.sync()
    assert is_pod_ready(world.pod())


def test_a_pod_with_finalizers_waits_for_them_and_takes_its_report_along(world: World) -> None:
    def keep(p: Pod) -> Pod:
        return replace(p, metadata=replace(p.metadata, finalizers=("example.com/x",)))

    world.registry.modify(Pod, "default", "p", keep)
    world.registry.delete(Pod, "default", "p")
    world.report(status(), removed=True)
    assert world.sync() == 1
    assert world.pod().metadata.deletion_grace_period_seconds == 0
    assert world.sync() == 0
    world.registry.modify(Pod, "default", "p", lambda p: replace(p, metadata=replace(p.metadata, finalizers=())))
    assert world.reported() == []


def test_who_leads_no_longer_carries_nothing_over(world: World) -> None:
    world.store.txn([], [Put("/leader", b"other")])
    former = Scheduler(world.store, world.clock, Compare.holds("/leader", b"me"))
    world.report(status())
    former.drain()
    with pytest.raises(Fenced):
        former.sync(ReportsLoop)
    assert world.pod() == world.p


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("report"), st.integers(0, 3)),
        st.tuples(st.sampled_from(["see pods", "see reports", "see all"]), st.integers(1, 3)),
        st.tuples(st.sampled_from(["sync", "again", "lose", "beat", "label", "another leader"]), st.just(0)),
    ),
    max_size=25,
)
SAID = (
    status(),
    status(ready=False, since=2),
    status(ip="10.5.1.7", since=3, container_statuses=(ContainerStatus(name="main", restart_count=2),)),
    status("Pending", ready=False, ip=""),
)


@given(STEPS)
def test_whatever_is_seen_when_the_last_word_counts(steps: list[tuple[str, int]]) -> None:
    """Of reports, any may be seen late, twice or never; in the end the pod is as was said last."""
    world, last = World(), SAID[0]
    world.report(last)
    for step, number in steps:
        match step:
            case "report":
                last = SAID[number]
                world.report(last)
            case "see pods":
                world.scheduler.sources[Pod].take(number)
            case "see reports":
                world.scheduler.sources[PodReport].take(number)
            case "see all":
                world.scheduler.drain()
            case "sync":
                world.scheduler.sync(ReportsLoop)
            case "again":
                world.report(last)
            case "lose":
                world.lose()
            case "beat":
                world.beat()
            case "label":
                meta = replace(world.pod().metadata, labels={"step": str(world.store.list("/").revision)})
                world.registry.update(replace(world.pod(), metadata=replace(meta, resource_version="")))
            case "another leader":
                world.scheduler = Scheduler(world.store, world.clock)
    world.beat()
    for _ in range(2):
        world.sync()
    assert _as_said(world.pod().status) == _as_said(last)
    assert world.sync() == 0


def _as_said(it: PodStatus) -> bytes:
    untimed = tuple(replace(c, last_transition_time=None) for c in it.conditions)
    return encode(replace(it, conditions=untimed, qos_class="", start_time=None))


def test_times_do_not_go_back() -> None:
    world, times = World(), list[datetime | None]()
    for said in (status(since=5), status(ready=False, since=7), status(since=6), status(since=9)):
        world.clock.advance(10)
        world.report(said)
        world.sync()
        ready = get_condition(world.pod().status.conditions, "Ready")
        assert ready is not None
        times.append(ready.last_transition_time)
    assert times == [at(5), at(7), at(30), at(30)]
