"""What an agent says of its pods, and when it says it again, on a store in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pytest
from agent_world import Later
from msgspec.structs import replace
from scheduler_objects import T0, at, pod

from podlane.api.types import Condition, Pod, PodReport, PodStatus
from podlane.errors import StoreUnavailable
from podlane.runtime.clock import FakeClock
from podlane.runtime.runner import NotReady
from podlane.store.memory import MemoryStore
from podlane.store.reports import Outbox, reported_status
from scheduler.agent.statuswriter import REMIND, StatusWriter

pytestmark = pytest.mark.unit


def status(phase: str = "Running", *, ready: bool = True, containers: bool = True) -> PodStatus:
    kinds = {"ContainersReady": containers, "Ready": ready}
    told = [Condition(type=kind, status=str(it), last_transition_time=at(0)) for kind, it in kinds.items()]
    return PodStatus(phase=phase, conditions=tuple(told))


MARKED = status(ready=False)
"""As the leader leaves it when the node is silent."""


class Agent:
    """The part of an agent that reports, and its outbox. `bound` is what its mirror shows."""

    def __init__(self, store: MemoryStore | None = None) -> None:
        self.clock = FakeClock(T0)
        self.store = store or MemoryStore(self.clock)
        self.written: list[str] = []
        self.looks: list[float] = []
        self.tasks: deque[Callable[[], object]] = deque()
        self.outbox = Outbox(self.store, "n1")
        self.writer = StatusWriter(
            self, self.looks.append, clock=self.clock, pool=lambda _size, _name: Later(self.tasks)
        )
        self.bound: dict[str, Pod] = {}

    def read(self) -> dict[str, PodReport]:
        return self.outbox.read()

    def write(self, reports: dict[str, PodReport | None]) -> None:
        self.outbox.write(reports)
        self.written.append(
            " ".join(sorted(f"{name.removeprefix('default/')}={_short(r)}" for name, r in reports.items()))
        )

    def bind(self, *names: str) -> None:
        self.bound |= {name: pod(name, node="n1") for name in names}

    def show(self, name: str, said: PodStatus) -> None:
        """The store comes to show a status."""
        version = str(int(self.bound[name].metadata.resource_version) + 1)
        meta = replace(self.bound[name].metadata, resource_version=version)
        self.bound[name] = replace(self.bound[name], metadata=meta, status=said)

    def look(self) -> dict[str, Pod]:
        """What a sync is given."""
        self.work()
        return {p.metadata.name: p for p in self.writer.newest(self.bound.values()).values()}

    def sync(self, **found: PodStatus) -> None:
        """Look, and find that these are so and the others as they were."""
        seen = self.look()
        for name, it in seen.items():
            self.writer.offer(it, found.get(name, it.status))
        self.writer.flush()
        self.work()

    def work(self) -> None:
        while self.tasks:
            self.tasks.popleft()()


def _short(report: PodReport | None) -> str:
    if report is None or report.removed:
        return "removed" if report else "nothing"
    return report.status.phase


@pytest.fixture
def agent() -> Agent:
    agent = Agent()
    agent.bind("a", "b")
    with pytest.raises(NotReady):
        agent.look()
    assert agent.look().keys() == {"a", "b"}
    return agent


def test_what_is_found_at_once_is_written_at_once_and_once(agent: Agent) -> None:
    agent.sync(a=status(), b=status("Failed"))
    agent.sync()
    agent.sync(a=status())
    assert agent.written == ["a=Running b=Failed"]
    agent.sync(a=status("Succeeded"))
    assert agent.written[1:] == ["a=Succeeded"]


def test_what_was_said_counts_before_the_store_shows_it(agent: Agent) -> None:
    agent.sync(a=status())
    assert agent.look()["a"].status.phase == "Running"
    placed = Condition(type="PodScheduled", status="True")
    agent.show("a", replace(agent.bound["a"].status, conditions=(placed,), nominated_node_name="n1"))
    seen = agent.look()["a"].status
    assert (seen.phase, seen.conditions[0], seen.nominated_node_name) == ("Running", placed, "n1")
    agent.sync()
    assert agent.written == ["a=Running"]


def test_a_pod_that_others_finished_is_seen_finished(agent: Agent) -> None:
    agent.sync(a=status())
    agent.show("a", replace(status("Failed", ready=False, containers=False), reason="Lost"))
    assert agent.look()["a"].status.reason == "Lost"


def test_what_the_store_does_not_come_to_show_is_written_again_after_a_while(agent: Agent) -> None:
    agent.sync(a=status(), b=status())
    agent.sync()
    agent.show("b", status())
    assert max(agent.looks) == REMIND
    agent.clock.advance(REMIND - 1)
    agent.sync()
    assert agent.written == ["a=Running b=Running"]
    agent.clock.advance(1)
    agent.sync()
    agent.sync()
    assert agent.written[1:] == ["a=Running"]
    agent.show("a", status())
    agent.clock.advance(2 * REMIND)
    agent.sync()
    assert len(agent.written) == 2
    agent.show("a", PodStatus())  # a store that was restored
    agent.sync()
    agent.clock.advance(REMIND)
    agent.sync()
    assert agent.written[2:] == ["a=Running"]


def test_a_pod_marked_not_ready_is_told_of_at_once_by_who_has_looked(agent: Agent) -> None:
    agent.sync(a=status())
    agent.show("a", status())
    agent.sync()
    agent.show("a", MARKED)
    agent.sync()
    agent.sync()
    assert agent.written == ["a=Running", "a=Running"]
    # an agent started anew says what it finds, not what the one before it said
    other = Agent(agent.store)
    other.bound = agent.bound
    with pytest.raises(NotReady):
        other.look()
    assert other.look()["a"].status == status()
    other.work()
    assert other.written == []
    other.sync(a=status("Failed"))
    assert other.written == ["a=Failed"]


def test_an_agent_started_anew_goes_on_with_what_was_said_and_cleans_up(agent: Agent) -> None:
    agent.sync(a=status(), b=status())
    agent.writer.remove(agent.look()["b"])
    agent.work()
    agent.outbox.write({"default/gone": PodReport(uid="uid-gone")})
    other = Agent(agent.store)
    other.bind("a", "b")
    with pytest.raises(NotReady):
        other.look()
    assert {name: it.status.phase for name, it in other.look().items()} == {"a": "Running"}
    other.sync()
    assert other.written == ["gone=nothing"]
    assert other.outbox.read().keys() == {"default/a", "default/b"}


def test_a_pod_said_to_be_removed_is_seen_no_more_until_another_has_its_name(agent: Agent) -> None:
    agent.sync(a=status())
    a = agent.look()["a"]
    agent.writer.remove(a)
    agent.writer.offer(a, status("Failed"))
    agent.writer.remove(a)
    agent.sync()
    assert agent.written == ["a=Running", "a=removed"]
    assert agent.look().keys() == {"b"}
    agent.clock.advance(REMIND)
    agent.sync()
    assert agent.written[2:] == ["a=removed"]
    meta = replace(agent.bound["a"].metadata, uid="uid-another")
    agent.bound["a"] = replace(agent.bound["a"], metadata=meta)
    agent.sync(a=status("Pending", ready=False))
    assert agent.written[3:] == ["a=Pending"]


def test_a_pod_that_stays_for_its_finalizers_is_said_to_be_removed_once(agent: Agent) -> None:
    agent.writer.remove(agent.look()["a"])
    agent.sync()
    meta = replace(agent.bound["a"].metadata, deletion_timestamp=at(1), deletion_grace_period_seconds=0)
    agent.bound["a"] = replace(agent.bound["a"], metadata=replace(meta, finalizers=("x",)))
    agent.sync()
    agent.clock.advance(2 * REMIND)
    agent.sync()
    assert agent.written == ["a=removed"]


def test_while_the_store_is_away_the_latest_of_each_pod_waits(agent: Agent) -> None:
    agent.store.faults.set_down(True)
    agent.sync(a=status(), b=status())
    agent.sync(a=status("Failed"))
    assert agent.written == []
    assert agent.looks[-1] == 1.0  # the pause after a second failure
    agent.store.faults.set_down(False)
    agent.sync()
    assert agent.written == ["a=Failed b=Running"]


def test_what_was_reported_is_asked_for_until_the_store_answers() -> None:
    agent = Agent()
    agent.bind("a")
    agent.store.faults.fail_next(2, StoreUnavailable("it is down"))
    for _ in range(3):
        with pytest.raises(NotReady, match="what was reported of them is not read yet"):
            agent.look()
    agent.work()
    assert agent.look().keys() == {"a"}


def test_the_very_status_is_kept_where_a_report_says_nothing_new() -> None:
    p = replace(pod("p", node="n1"), status=status())
    assert reported_status(p, status()) is p.status
