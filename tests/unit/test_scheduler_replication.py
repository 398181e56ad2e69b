from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import T0, at, index_of, owned_by, pod, rc

from podlane.api.meta import controller_of, is_pod_active
from podlane.api.types import Condition, ReplicationControllerStatus
from scheduler import replication
from scheduler.kinds import Failure, Outcome, owner_of, with_outcome
from scheduler.removal import removal_order
from scheduler.replication import Counts

pytestmark = pytest.mark.unit


def plan(owners, pods, *, now: float = T0 + 100, **options):
    index = index_of(map(owner_of, owners), pods)
    shares = [index.share(uid) for uid in sorted(index.dirty)]
    return replication.plan(shares, now=now, rng=random.Random(7), taken=index.names, **options)


def text(*arguments, **options) -> str:
    """The plan with the random suffixes blanked."""
    return re.sub(r"(create pod \S+-)[a-z0-9]{5}", r"\1*", str(plan(*arguments, **options)))


def test_creates_what_is_missing():
    assert text([rc(replicas=3)], [pod("web-a", owner="web")]) == ("create pod default/web-*\ncreate pod default/web-*")


def test_a_new_pod_is_the_template_owned_and_labelled():
    made = plan([rc()], []).create[0]
    assert re.fullmatch(r"web-[bcdfghjklmnpqrstvwxz2456789]{5}", made.metadata.name)
    assert made.metadata.generate_name == "web-"
    assert made.metadata.labels == {"app": "web"}
    assert made.metadata.owner_references == owned_by("web")
    assert made.spec == rc().spec.template.spec
    assert (made.kind, made.api_version, made.status.phase) == ("Pod", "v1", "Pending")


def test_a_long_name_still_makes_a_host_name():
    owner = replace(rc(), metadata=replace(rc().metadata, name="n" * 120))
    assert len(plan([owner], []).create[0].metadata.name) == 63


def test_names_in_use_are_not_given_again():
    owner = rc(replicas=1)
    first = plan([owner], []).create[0].metadata.name
    # another owner's pod has the name that the same random numbers would give
    second = plan([owner], [pod(first, owner="web", phase="Failed")]).create[0].metadata.name
    assert first != second


@pytest.mark.parametrize(
    "gone",
    [
        pod("web-a", owner="web", node="n1", terminating=True, ready=True),
        pod("web-a", owner="web", node="n1", phase="Failed"),
        pod("web-a", owner="web", node="n1", phase="Succeeded"),
    ],
)
def test_a_pod_that_ends_is_replaced_at_once(gone):
    assert text([rc(replicas=1)], [gone]) == "create pod default/web-*"


def test_nothing_to_do():
    assert plan([rc(replicas=1)], [pod("web-a", owner="web")]).empty


def test_zero_replicas():
    assert text([rc(replicas=0)], [pod("web-a", owner="web")]) == "delete pod default/web-a (unassigned)"


def test_adopts_orphans_and_counts_them_only_afterwards():
    orphans = [pod("a"), pod("b"), pod("other", labels={"app": "db"}), pod("done", phase="Failed")]
    result = plan([rc(replicas=3)], orphans)
    assert str(result) == "adopt pod default/a\nadopt pod default/b"
    adopted = [claim.changed for claim in result.adopt]
    assert [controller_of(p).uid for p in adopted] == ["uid-web", "uid-web"]
    assert text([rc(replicas=3)], [*adopted, *orphans[2:]]) == "create pod default/web-*"


def test_an_orphan_goes_to_one_owner_only():
    result = plan([rc("one", replicas=1), rc("two", replicas=0)], [pod("a")])
    assert [controller_of(claim.changed).name for claim in result.adopt] == ["one"]


def test_does_not_adopt_across_namespaces_or_what_is_being_deleted():
    strangers = [pod("a", namespace="prod"), pod("b", terminating=True, node="n1")]
    assert text([rc(replicas=1)], strangers) == "create pod default/web-*"


def test_releases_a_pod_whose_labels_were_changed():
    result = plan([rc(replicas=1)], [pod("web-a", owner="web", labels={"app": "debug"})])
    assert str(result) == "release pod default/web-a"
    released = result.release[0].changed
    assert released.metadata.owner_references == ()
    assert text([rc(replicas=1)], [released]) == "create pod default/web-*"


def test_another_controllers_pods_are_left_alone():
    foreign = pod("web-a")
    foreign = replace(foreign, metadata=replace(foreign.metadata, owner_references=owned_by("x", "Job")))
    assert plan([rc(replicas=0)], [foreign]).empty


def test_an_owner_that_is_being_deleted_only_counts():
    going = replace(rc(replicas=3), metadata=replace(rc().metadata, deletion_timestamp=at(1)))
    result = plan([going], [pod("a"), pod("web-a", owner="web"), pod("web-b", owner="web", labels={"app": "x"})])
    assert result.empty
    assert result.counts["uid-web"].replicas == 2


def test_a_large_owner_takes_a_burst_at_a_time():
    result = plan([rc("big", replicas=1200), rc("small", replicas=500)], [])
    assert result.sizes() == {"create": 1000}
    assert result.unfinished == {"uid-big"}
    assert len({p.metadata.name for p in result.create}) == 1000
    many = [pod(f"big-{i}", owner="big") for i in range(1200)]
    assert plan([rc("big", replicas=0)], many).sizes() == {"delete": 500}


class TestRemovalOrder:
    def order(self, *pods, unreachable=frozenset()) -> list[str]:
        return [r.pod.metadata.name for r in removal_order(pods, unreachable)]

    def test_kubernetes_ranks(self):
        pods = [
            pod("unassigned"),
            pod("pending", node="n1"),
            pod("unknown", node="n2", phase="Unknown"),
            pod("not-ready", node="n3", phase="Running"),
            pod("cheap", node="n4", ready=1, cost="-5"),
            pod("crowded", node="n5", ready=1),
            pod("sibling", node="n5", ready=1, created=-1),
            pod("just-ready", node="n6", ready=9),
            pod("restarted", node="n7", ready=1, restarts=4),
            pod("newer", node="n8", ready=1, created=5),
            pod("older", node="n9", ready=1, created=0),
            pod("dear", node="n10", ready=1, cost="10"),
        ]
        shuffled = pods[:]
        random.Random(3).shuffle(shuffled)
        assert self.order(*shuffled) == [
            "unassigned", "pending", "unknown", "not-ready", "cheap", "crowded",
            "just-ready", "restarted", "newer", "older", "sibling", "dear",
        ]  # fmt: skip

    def test_what_stays_is_spread(self):
        pods = [pod(f"{n}{i}", node=n, ready=1) for n, size in (("a", 3), ("b", 3), ("c", 2)) for i in range(size)]
        assert len({name[0] for name in self.order(*pods)[6:]}) == 2
        assert len({name[0] for name in self.order(*pods)[5:]}) == 3

    def test_a_pod_on_a_dead_node_is_not_ready_whatever_it_last_said(self):
        pods = [pod("new", node="n1", ready=9), pod("cut-off", node="n2", ready=0)]
        assert self.order(*pods) == ["new", "cut-off"]
        assert self.order(*pods, unreachable={"n2"}) == ["cut-off", "new"]

    def test_the_plan_says_why(self):
        pods = [pod("web-a", owner="web", node="n1", ready=1), pod("web-b", owner="web", node="n1", ready=2)]
        assert text([rc(replicas=1)], pods) == "delete pod default/web-b (2 on n1)"


class TestStatus:
    def test_counts(self):
        pods = [
            pod("web-a", owner="web", node="n1", ready=1),
            pod("web-b", owner="web", node="n2", phase="Running"),
            pod("web-c", owner="web", node="n3", ready=1),
            pod("web-d", owner="web", node="n1", ready=1, terminating=True),
        ]
        assert plan([rc(replicas=3)], pods).counts["uid-web"] == Counts(3, 3, 2, 2)
        assert plan([rc(replicas=3)], pods, unreachable={"n3"}).counts["uid-web"] == Counts(3, 3, 1, 1)

    def test_available_after_min_ready_seconds(self):
        owner, pods = rc(min_ready=10), [pod("web-a", owner="web", node="n1", ready=95)]
        early, late = plan([owner], pods, now=T0 + 100), plan([owner], pods, now=T0 + 105)
        assert (early.counts["uid-web"].available, early.next_at) == (0, {"uid-web": T0 + 105})
        assert (late.counts["uid-web"].available, late.next_at) == (1, {})


class TestOutcome:
    def written(self, controller, counts=Counts(2, 2, 1, 1), failure=None, now=T0):
        return with_outcome(controller, Outcome(counts, failure, now))

    def test_written_only_when_changed(self):
        changed = self.written(rc())
        assert changed.status == ReplicationControllerStatus(
            replicas=2, fully_labeled_replicas=2, ready_replicas=1, available_replicas=1, observed_generation=1
        )
        assert self.written(changed) is None

    def test_a_failure_is_a_condition_while_it_lasts(self):
        failed = self.written(rc(), failure=Failure("FailedCreate", "exceeded quota"))
        (condition,) = failed.status.conditions
        assert condition == Condition(
            type="ReplicaFailure",
            status="True",
            reason="FailedCreate",
            message="exceeded quota",
            last_transition_time=at(0),
        )
        assert self.written(failed, failure=Failure("FailedCreate", "exceeded quota, again"), now=T0 + 5) is None
        assert self.written(failed, now=T0 + 9).status.conditions == ()


states = st.builds(
    lambda i, node, phase, ready, ending, mine, labels: pod(
        f"p{i}",
        owner="web" if mine else "",
        node=node,
        phase=phase,
        ready=float(i) if ready else False,
        terminating=ending,
        labels={"app": labels},
    ),
    st.integers(0, 10**6),
    st.sampled_from(["", "n1", "n2"]),
    st.sampled_from(["Pending", "Running", "Failed", "Unknown"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["web", "db"]),
)


@given(st.lists(states, max_size=12, unique_by=lambda p: p.metadata.name), st.integers(0, 6))
def test_carrying_plans_out_reaches_the_exact_count_in_two_steps(pods, replicas):
    owner = rc(replicas=replicas)
    for _ in range(2):
        step = plan([owner], pods)
        changed = {claim.pod.metadata.name: claim.changed for claim in (*step.adopt, *step.release)}
        gone = {r.pod.metadata.name for r in step.delete}
        pods = [changed.get(p.metadata.name, p) for p in pods if p.metadata.name not in gone]
        pods += step.create
    mine = [p for p in pods if is_pod_active(p) and controller_of(p)]
    assert len(mine) == replicas
    assert plan([owner], pods).empty
