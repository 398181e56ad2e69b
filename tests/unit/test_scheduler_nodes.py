from __future__ import annotations

import pytest
from node_world import NodeWorld, tolerant
from scheduler_objects import T0, node, pod

from podlane.api.taints import NOT_READY, UNREACHABLE
from podlane.api.types import Taint, Toleration
from scheduler import nodes
from scheduler.nodes import PACE, Patience

pytestmark = pytest.mark.unit

GONE = ["unreachable:NoExecute", "unreachable:NoSchedule"]


def test_nothing_to_do():
    assert str(NodeWorld("n1", "n2", "n3").plan(0)) == ""


def test_a_node_that_goes_is_marked_and_tainted_at_once_and_its_pods_given_up_after_the_grace():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    assert str(c.plan(10)).splitlines() == [
        "mark node n2 unknown",
        "taint node n2 +node.kubernetes.io/unreachable:NoSchedule +node.kubernetes.io/unreachable:NoExecute",
    ]
    assert c.last.next_at == T0 + 15
    c.at(10)
    assert c.taints("n2") == GONE
    assert c.at(14.9) == ""
    assert c.at(15) == "evict pod default/on-n2: node n2 is gone"
    assert c.last.evict[0].lost
    assert c.at(100) == ""


def test_pods_being_deleted_are_given_up_too():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [pod("leaving", node="n2", terminating=True)]
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    assert "evict pod default/leaving" in c.at(6)


def test_a_node_that_comes_back_in_time_keeps_its_pods():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    c.at(10)
    c.alive.add("n2")
    # its agent has the first word; when it says nothing, the heartbeat is believed
    assert c.at(12) == ""
    assert c.last.next_at == T0 + 14
    assert c.taints("n2") == GONE
    assert c.at(14) == "mark node n2 ready"
    assert c.taints("n2") == []
    assert c.at(100) == ""


def test_an_agent_that_is_quick_to_say_it_is_back_is_believed():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    c.at(10)
    c.alive.add("n2")
    c.says("n2", "True", "KubeletReady")
    assert c.at(11) == ""
    assert c.taints("n2") == []


def test_a_node_that_is_not_ready_gets_no_pods_and_keeps_its_own_for_long():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.says("n2", "False", "ContainerRuntimeNotReady")
    assert c.at(1) == ""
    assert c.taints("n2") == ["not-ready:NoExecute", "not-ready:NoSchedule"]
    assert c.at(300.9) == ""
    assert c.at(301) == "evict pod default/on-n2: node n2 is not ready"
    # its agent lives, and is to end the pod
    assert not c.last.evict[0].lost


def test_a_pod_that_ends_already_is_not_told_again_while_its_agent_lives():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [pod("leaving", node="n2", terminating=True)]
    c.says("n2", "False")
    c.at(0)
    assert c.at(1000) == ""


def test_conditions_and_cordons_keep_new_pods_away():
    c = NodeWorld("n1", "n2")
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"):
        c.condition("n1", kind, "True")
    c.cordon("n1")
    c.taint("n1", Taint(key="gpu", effect="NoSchedule"))
    assert c.at(0) == ""
    assert c.taints("n1") == [
        "disk-pressure:NoSchedule",
        "gpu:NoSchedule",
        "memory-pressure:NoSchedule",
        "network-unavailable:NoSchedule",
        "pid-pressure:NoSchedule",
        "unschedulable:NoSchedule",
    ]
    for kind in ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable"):
        c.condition("n1", kind, "False")
    c.cordon("n1", False)
    c.at(1)
    assert c.taints("n1") == ["gpu:NoSchedule"]
    assert c.plan(2).empty


def test_what_pods_tolerate_and_for_how_long():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [
        tolerant(pod("for-ever", node="n2"), Toleration(key=UNREACHABLE, operator="Exists", effect="NoExecute")),
        tolerant(pod("everything", node="n2"), Toleration(operator="Exists")),
        tolerant(pod("a-minute", node="n2"), Toleration(key=UNREACHABLE, operator="Exists", toleration_seconds=60)),
        tolerant(pod("not-a-second", node="n2"), Toleration(key=UNREACHABLE, operator="Exists", toleration_seconds=-1)),
        tolerant(pod("other-taint", node="n2"), Toleration(key=NOT_READY, operator="Exists")),
        tolerant(pod("no-schedule", node="n2"), Toleration(operator="Exists", effect="NoSchedule")),
    ]
    c.at(0)
    c.alive.remove("n2")
    assert c.at(10).splitlines()[1:] == ["evict pod default/not-a-second: node n2 is gone"]
    assert c.at(15).splitlines() == [
        "evict pod default/other-taint: node n2 is gone",
        "evict pod default/no-schedule: node n2 is gone",
    ]
    assert c.last.next_at == T0 + 70
    assert c.at(70) == "evict pod default/a-minute: node n2 is gone"
    assert c.at(10_000) == ""


def test_an_operators_taint_is_obeyed_at_once():
    c = NodeWorld("n1", "n2")
    dedicated = Toleration(key="dedicated", value="db")
    c.pods = [
        pod("any", node="n1"),
        tolerant(pod("db", node="n1"), dedicated),
        tolerant(pod("cache", node="n1"), Toleration(key="dedicated", value="cache")),
        tolerant(
            pod("soon", node="n1"), Toleration(key="dedicated", operator="Exists", toleration_seconds=30), dedicated
        ),
    ]
    c.at(0)
    c.taint("n1", Taint(key="dedicated", value="db", effect="NoSchedule"))
    assert c.at(1) == ""
    c.taint("n1", Taint(key="dedicated", value="db", effect="NoExecute"))
    assert c.at(2).splitlines() == [
        "evict pod default/any: node n1 has the taint dedicated=db:NoExecute",
        "evict pod default/cache: node n1 has the taint dedicated=db:NoExecute",
    ]
    # its agent ends them with their grace; of two tolerations that match, the first counts
    assert not any(e.lost for e in c.last.evict)
    assert c.at(31.9) == ""
    assert c.at(32) == "evict pod default/soon: node n1 has the taint dedicated=db:NoExecute"
    c.pods.append(pod("late", node="n1"))
    c.untaint("n1", "dedicated")
    assert c.at(33) == ""


def test_what_the_agent_says_of_itself_stands():
    c = NodeWorld("n1")
    c.says("n1", "False", reason="NetworkNotReady")
    assert (c.at(0), c.at(1000)) == ("", "")


def test_a_new_leader_counts_from_what_it_sees_itself():
    c = NodeWorld("n1", "n2", "n3")
    c.alive.remove("n2")
    assert c.at(100) == ""
    assert c.at(102) == "mark node n2 unknown"
    assert c.at(104) == ""
    c.seen = {}
    assert c.at(104.5) == ""
    assert c.taints("n2") == GONE
    assert c.at(109) == ""
    assert c.at(109.5) == "evict pod default/on-n2: node n2 is gone"


def test_a_node_that_registers_before_its_heartbeat_is_not_marked():
    c = NodeWorld("n1")
    c.at(0)
    c.nodes["n2"] = node("n2", ready="True")
    assert c.at(1) == ""
    assert c.taints("n2") == []
    c.alive.add("n2")
    assert c.at(1.1) == ""


def test_most_of_the_cluster_gone_gives_up_nothing():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive -= {"n2", "n3"}
    assert c.at(1) == "mark node n2 unknown\nmark node n3 unknown\nhold 2/3 nodes: n2 n3"
    assert c.taints("n2") == ["unreachable:NoSchedule"]
    assert c.at(1000) == "hold 2/3 nodes: n2 n3"
    # one is back: the other gets time to come too, and then the whole grace period again
    c.alive.add("n2")
    c.at(1001)
    assert c.taints("n3") == GONE
    assert "evict" not in c.at(1014.9)
    assert "evict pod default/on-n3" in c.at(1015)


def test_most_of_the_cluster_not_ready_gives_up_nothing_either():
    c = NodeWorld("n1", "n2", "n3")
    c.says("n1", "False")
    c.says("n2", "False")
    assert (c.at(0), c.at(1000)) == ("", "")
    assert c.taints("n1") == ["not-ready:NoSchedule"]
    # but one that is gone is, while most of the others say themselves what is wrong with them
    c.alive.remove("n3")
    c.at(1001)
    assert c.at(1006) == "evict pod default/on-n3: node n3 is gone"


def test_exactly_half_is_not_most():
    c = NodeWorld("n1", "n2", "n3", "n4")
    c.at(0)
    c.alive -= {"n3", "n4"}
    c.at(1)
    assert len(c.plan(6).evict) == 2


def test_only_a_share_of_the_nodes_is_given_up_at_once():
    c = NodeWorld(*(f"n{i}" for i in range(10)), patience=Patience(grace=5, share=0.25))
    c.at(0)
    c.alive -= {"n5", "n6", "n7", "n8", "n9"}
    c.at(1)
    assert c.at(6).splitlines() == [
        "evict pod default/on-n5: node n5 is gone",
        "evict pod default/on-n6: node n6 is gone",
        "wait to give up nodes n7 n8 n9",
    ]
    assert c.last.next_at == T0 + 6 + PACE
    # one whose turn has not come may still come back; one that was given up has no second turn to wait for
    c.alive.add("n7")
    c.pods.append(pod("late", node="n5"))
    assert c.at(7).splitlines() == [
        "evict pod default/late: node n5 is gone",
        "wait to give up nodes n8 n9",
    ]
    assert [e.node for e in c.plan(16).evict] == ["n8", "n9"]


def test_of_two_nodes_one_may_be_given_up():
    c = NodeWorld("n1", "n2", patience=Patience(share=0.1))
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    assert "evict pod default/on-n2" in c.at(6)


def test_nothing_is_given_up_when_there_is_nowhere_to_go():
    c = NodeWorld("n1")
    c.at(0)
    c.alive.clear()
    c.at(1)
    assert "evict" not in c.at(1000)


def test_pods_of_a_node_that_does_not_exist():
    c = NodeWorld("n1", "n2")
    c.pods.append(tolerant(pod("lost", node="n9"), Toleration(operator="Exists")))
    assert c.at(0) == ""
    assert c.last.next_at == T0 + 5
    assert c.at(5) == "evict pod default/lost: node n9 does not exist"
    assert c.last.evict[0].missing


def test_unreachable():
    members = [node("n1"), node("n2")]
    assert nodes.unreachable(members, {"n1", "n2"}) == frozenset()
    assert nodes.unreachable(members, {"n1"}) == {"n2"}
    # with nobody left to tell, what is known stands
    assert nodes.unreachable(members, set()) == frozenset()


def test_pods_of_a_node_that_is_gone_are_not_ready_until_its_agent_says_so():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [pod("ready", node="n2", ready=True), pod("not-ready", node="n2"), pod("well", node="n1", ready=True)]
    c.pods.append(pod("leaving", node="n2", ready=True, terminating=True))
    c.at(0)
    c.alive.remove("n2")
    marks = [f"mark pod default/{name} not ready: node n2 is gone" for name in ("ready", "leaving")]
    assert c.at(1).splitlines() == ["mark node n2 unknown", *marks]
    # its agent is on its way back: what it says is not contradicted
    c.pod_says("ready", "True")
    assert c.at(2) == ""
    c.alive.add("n2")
    c.says("n2", "True", "KubeletReady")
    assert c.at(3) == ""
    # the next outage is another
    c.alive.remove("n2")
    assert c.at(4).splitlines()[1:] == marks[:1]


def test_what_pods_of_a_node_that_lives_say_is_their_agents():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [pod("p", node="n2", ready=True)]
    c.says("n2", "False", "ContainerRuntimeNotReady")
    assert (c.at(0), c.at(100)) == ("", "")


def test_pods_are_marked_with_their_node_and_not_before():
    c = NodeWorld("n1", "n2", "n3")
    c.pods = [pod("p", node="n2", ready=True)]
    c.alive.remove("n2")
    assert c.at(0) == ""  # it may be about to register
    assert c.at(2).splitlines() == ["mark node n2 unknown", "mark pod default/p not ready: node n2 is gone"]


def test_a_pod_that_is_given_up_is_not_marked():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    c.pods = [pod("late", node="n2", ready=True)]
    assert c.at(6) == "evict pod default/late: node n2 is gone"


def test_most_of_the_cluster_gone_leaves_pods_as_they_are():
    c = NodeWorld("n1", "n2", "n3")
    for_ever = Toleration(operator="Exists")
    c.pods = [tolerant(pod(f"on-{name}", node=name, ready=True), for_ever) for name in ("n1", "n2", "n3")]
    c.at(0)
    c.alive -= {"n2", "n3"}
    c.at(1)
    assert c.last.unready == ()
    assert c.last.next_at is None
    # one is back: the other has time to come, too
    c.alive.add("n2")
    c.says("n2", "True")
    assert c.at(10) == ""
    assert c.last.next_at == T0 + 11
    assert c.at(11) == "mark pod default/on-n3 not ready: node n3 is gone"
    assert c.plan(12).next_at is None


def test_people_hear_once_of_each_change_whoever_wrote_it():
    c = NodeWorld("n1", "n2", "n3")
    c.at(0)
    c.alive.remove("n2")
    c.at(1)
    assert c.news == []  # not before it is written
    c.at(2)
    assert c.news == ["n2: not ready"]
    # its agent writes before its heartbeat is there: it is marked again, and that is no news
    c.says("n2", "True", "KubeletReady")
    assert c.at(3) == "mark node n2 unknown"
    c.at(4)
    assert c.news == ["n2: not ready"]
    c.alive.add("n2")
    c.at(5)
    c.says("n2", "False", "NetworkNotReady")
    c.at(6)
    assert c.news == ["n2: not ready"]
    c.says("n2", "True", "KubeletReady")
    c.at(7)
    c.at(8)
    assert c.news == ["n2: not ready", "n2: ready"]
    c.says("n2", "False", "ContainerRuntimeNotReady")
    c.at(9)
    assert c.news[2:] == ["n2: not ready"]


def test_a_new_leader_does_not_repeat_what_was_told():
    c = NodeWorld("n1", "n2", "n3")
    c.nodes["n4"] = node("n4", ready="False")
    c.alive = {"n1", "n3", "n4"}
    c.says("n2", "Unknown", "NodeStatusUnknown")
    c.at(0)
    assert c.news == []
    c.alive.add("n2")
    c.says("n2", "True", "KubeletReady")
    c.says("n4", "True", "KubeletReady")
    c.at(1)
    assert c.news == ["n2: ready", "n4: ready"]
