"""What rules a node out, each with the words that say so, and what makes one better than another."""

from __future__ import annotations

import pytest
from placement_objects import (
    PREFERRED,
    apart,
    container,
    decide,
    host_port,
    near,
    node,
    on_labels,
    pod,
    rather,
    spread,
)

from podlane.api.types import HOSTNAME_LABEL, ZONE_LABEL
from scheduler.placement.demand import demand_of

pytestmark = pytest.mark.unit

EAST_WEST = [node("n1", zone="east"), node("n2", zone="east"), node("n3", zone="west")]


def where(nodes, waiting, *others, **options) -> str:
    """The node a pod goes to, or why there is none."""
    plan = decide(nodes, waiting, *others, **options)
    mine = [p.node for p in plan.bind if p.pod is waiting]
    return mine[0] if mine else next(u.why for u in plan.unschedulable if u.pod is waiting)


def test_a_node_that_offers_what_nobody_can_read_is_passed_over() -> None:
    wants = pod("p", cpu="1")
    assert where([node("n1", cpu="lots"), node("n2", cpu="2")], wants) == "n2"
    assert where([node("n1", cpu="lots")], wants) == "0/1 nodes fit: 1 too little cpu (need 1, 0 free)"


class TestTaints:
    @pytest.mark.parametrize("effect", ["NoSchedule", "NoExecute"])
    def test_a_taint_keeps_pods_away_that_do_not_tolerate_it(self, effect):
        nodes = [node("n1", taints=f"dedicated=gpu:{effect}")]
        assert where(nodes, pod("p")) == f"0/1 nodes fit: 1 tainted dedicated=gpu:{effect}"
        for toleration in (
            {"key": "dedicated", "value": "gpu"},
            {"key": "dedicated", "operator": "Exists"},
            {"operator": "Exists"},
            {"key": "dedicated", "value": "gpu", "effect": effect},
        ):
            assert where(nodes, pod("p", {"tolerations": [toleration]})) == "n1"
        for toleration in (
            {"key": "dedicated", "value": "cpu"},
            {"key": "dedicated", "value": "gpu", "effect": "PreferNoSchedule"},
        ):
            assert where(nodes, pod("p", {"tolerations": [toleration]})).endswith(f"1 tainted dedicated=gpu:{effect}")

    def test_prefer_no_schedule_only_makes_others_better(self):
        nodes = [node("n1", taints="old:PreferNoSchedule"), node("n2", cpu="4")]
        assert where(nodes, pod("p", cpu="1"), pod("x", node="n2", cpu="3")) == "n2"
        assert where(nodes, pod("p", cpu="2"), pod("x", node="n2", cpu="3")) == "n1"

    def test_each_taint_is_a_group(self):
        nodes = [node("n1", taints="a:NoSchedule"), node("n2", taints="b=c:NoExecute"), node("n3", cordoned=True)]
        assert where(nodes, pod("p")) == "0/3 nodes fit: 1 cordoned, 1 tainted a:NoSchedule, 1 tainted b=c:NoExecute"

    def test_cordoned_and_not_ready_are_tolerated_by_the_taints_they_stand_for(self):
        cordoned = {"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}
        assert where([node("n1", cordoned=True)], pod("p", cordoned)) == "n1"
        not_ready = {"tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists"}]}
        assert where([node("n1", ready="False")], pod("p", not_ready)) == "n1"


class TestNodeAffinity:
    NODES = (node("n1", labels={"size": "3"}), node("n2", labels={"size": "12", "disk": "ssd"}))

    @pytest.mark.parametrize(
        ("expression", "expected"),
        [
            ({"key": "disk", "operator": "In", "values": ["ssd", "nvme"]}, "n2"),
            ({"key": "disk", "operator": "NotIn", "values": ["ssd"]}, "n1"),
            ({"key": "disk", "operator": "Exists"}, "n2"),
            ({"key": "disk", "operator": "DoesNotExist"}, "n1"),
            ({"key": "size", "operator": "Gt", "values": ["5"]}, "n2"),
            ({"key": "size", "operator": "Lt", "values": ["5"]}, "n1"),
        ],
    )
    def test_expressions(self, expression, expected):
        assert where(self.NODES, pod("p", on_labels(expression))) == expected

    def test_one_term_is_enough_and_an_empty_one_matches_nothing(self):
        wanted = on_labels({"key": "a", "operator": "Exists"}, {"key": "size", "operator": "In", "values": ["12"]})
        assert where(self.NODES, pod("p", wanted)) == "n2"
        empty = on_labels()
        empty["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] = [{}]
        assert where(self.NODES, pod("p", empty)) == "0/2 nodes fit: 2 outside node affinity (empty)"

    def test_fields(self):
        terms = [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]
        wanted = {
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
            }
        }
        assert where(self.NODES, pod("p", wanted)) == "n2"

    def test_reason(self):
        wanted = on_labels({"key": "disk", "operator": "In", "values": ["tape"]})
        assert where(self.NODES, pod("p", wanted)) == "0/2 nodes fit: 2 outside node affinity disk in (tape)"

    def test_preferred_is_before_an_empty_node(self):
        term = {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
        wanted = {"affinity": {"nodeAffinity": {PREFERRED: [term]}}}
        assert where(self.NODES, pod("p", wanted), pod("x", node="n2", cpu="2")) == "n2"


class TestHostPorts:
    @pytest.mark.parametrize(
        ("taken", "wanted", "fits"),
        [
            (host_port(80), host_port(80), False),
            (host_port(80), host_port(81), True),
            (host_port(80), host_port(80, "UDP"), True),
            (host_port(80, ip="10.0.0.1"), host_port(80, ip="10.0.0.2"), True),
            (host_port(80, ip="10.0.0.1"), host_port(80, ip="10.0.0.1"), False),
            (host_port(80, ip="10.0.0.1"), host_port(80), False),
            (host_port(80, ip="0.0.0.0"), host_port(80, ip="10.0.0.1"), False),
        ],
    )
    def test_conflicts(self, taken, wanted, fits):
        said = where([node("n1")], pod("p", wanted), pod("x", taken, node="n1"))
        assert (said == "n1") == fits

    def test_two_of_one_plan_do_not_share_a_port(self):
        plan = decide([node("n1"), node("n2")], *(pod(f"p{i}", host_port(80)) for i in range(3)))
        assert sorted(p.node for p in plan.bind) == ["n1", "n2"]
        assert [u.why for u in plan.unschedulable] == ["0/2 nodes fit: 2 with host port TCP 80 taken"]


class TestRequests:
    def test_containers_are_a_sum_and_a_limit_is_a_request(self):
        limited = {"resources": {"limits": {"cpu": "2"}}}
        demand = demand_of(pod("p", {"containers": [container("1", "1Gi"), limited]}))
        assert (demand.cpu, demand.memory) == (3000, 1 << 30)

    def test_init_containers_count_one_at_a_time(self):
        wants = {"initContainers": [container("3"), container("2", "4Gi")], "containers": [container("1", "1Gi")]}
        demand = demand_of(pod("p", wants))
        assert (demand.cpu, demand.memory) == (3000, 4 << 30)

    def test_sidecars_run_beside_what_comes_after_them(self):
        sidecar = container("1", restartPolicy="Always")
        later = {"initContainers": [sidecar, container("3")], "containers": [container("1")]}
        assert demand_of(pod("p", later)).cpu == 4000
        earlier = {"initContainers": [container("3"), sidecar], "containers": [container("1")]}
        assert demand_of(pod("p", earlier)).cpu == 3000


class TestPodAffinity:
    def test_goes_where_such_pods_are(self):
        assert where(EAST_WEST, pod("p", near("db")), pod("x", app="db", node="n3")) == "n3"
        assert where(EAST_WEST, pod("p", near("db")), pod("x", app="db", node="n1")) in {"n1", "n2"}

    def test_without_such_pods_nowhere(self):
        assert where(EAST_WEST, pod("p", near("db"))) == (
            f"0/3 nodes fit: 3 without pods to be near to (app=db by {ZONE_LABEL})"
        )

    def test_the_first_of_a_group_that_wants_to_be_near_itself_may_go_anywhere(self):
        plan = decide(EAST_WEST, *(pod(f"p{i}", near("web"), created=i) for i in range(4)))
        zones = {{"n1": "east", "n2": "east", "n3": "west"}[p.node] for p in plan.bind}
        assert len(plan.bind) == 4
        assert len(zones) == 1

    def test_a_node_without_the_label_is_out(self):
        assert where([node("n1")], pod("p", near("web"))) == f"0/1 nodes fit: 1 without label {ZONE_LABEL}"

    def test_only_the_own_namespace_unless_said(self):
        other = pod("x", app="db", node="n1", namespace="prod")
        assert "without pods" in where(EAST_WEST, pod("p", near("db", HOSTNAME_LABEL)), other)
        assert where(EAST_WEST, pod("p", near("db", HOSTNAME_LABEL, namespaces=["prod"])), other) == "n1"
        assert where(EAST_WEST, pod("p", near("db", HOSTNAME_LABEL, namespaceSelector={})), other) == "n1"
        selected = pod("p", near("db", HOSTNAME_LABEL, namespaceSelector={"matchLabels": {"stage": "prod"}}))
        assert where(EAST_WEST, selected, other, namespaces={"prod": {"stage": "prod"}}) == "n1"
        assert "without pods" in where(EAST_WEST, selected, other, namespaces={"prod": {"stage": "test"}})

    def test_rather_near(self):
        wanted = rather("podAffinity", "db")
        assert where(EAST_WEST, pod("p", wanted), pod("x", app="db", node="n3", cpu="2")) == "n3"


class TestAntiAffinity:
    def test_one_on_each_node(self):
        plan = decide(EAST_WEST, *(pod(f"p{i}", apart("web"), created=i) for i in range(4)))
        assert sorted(p.node for p in plan.bind) == ["n1", "n2", "n3"]
        assert [u.why for u in plan.unschedulable] == [
            f"0/3 nodes fit: 3 with pods it must avoid (app=web by {HOSTNAME_LABEL})"
        ]

    def test_who_is_there_already_keeps_others_away(self):
        shy = pod("x", apart("web", ZONE_LABEL), app="db", node="n1")
        assert where(EAST_WEST, pod("p"), shy) == "n3"
        assert where(EAST_WEST[:2], pod("p"), shy) == (
            f"0/2 nodes fit: 2 with pods that must avoid it (app=web by {ZONE_LABEL})"
        )

    def test_rather_apart(self):
        wanted = rather("podAntiAffinity", "db")
        busy = [pod("x", app="db", node="n1"), pod("y", node="n2", cpu="3"), pod("z", app="db", node="n3")]
        assert where(EAST_WEST, pod("p", wanted), *busy) == "n2"

    def test_who_is_there_already_and_would_rather_be_apart_counts(self):
        shy = pod("x", rather("podAntiAffinity", "web"), app="db", node="n1")
        busy = [pod("y", node="n2", cpu="3"), pod("z", node="n3", cpu="3", app="db")]
        assert where(EAST_WEST, pod("p"), shy, *busy) in {"n2", "n3"}


class TestSpread:
    def test_by_zone(self):
        plan = decide(EAST_WEST, *(pod(f"p{i}", spread(), created=i) for i in range(4)))
        zones = [{"n1": "east", "n2": "east", "n3": "west"}[p.node] for p in plan.bind]
        assert sorted(zones) == ["east", "east", "west", "west"]

    def test_the_skew_is_kept_where_a_zone_is_full(self):
        nodes = [node("n1", zone="east"), node("n2", zone="west", pods="1")]
        plan = decide(nodes, *(pod(f"p{i}", spread(), created=i) for i in range(4)))
        assert sorted(p.node for p in plan.bind) == ["n1", "n1", "n2"]
        assert plan.unschedulable[0].why == (
            f"0/2 nodes fit: 1 full (1 pods), 1 with too many alike by {ZONE_LABEL} (skew 2, at most 1)"
        )

    def test_a_node_without_the_label_is_out(self):
        assert where([node("n1")], pod("p", spread())) == f"0/1 nodes fit: 1 without label {ZONE_LABEL}"

    def test_pods_that_end_do_not_count(self):
        others = [pod(f"x{i}", node="n1", terminating=True) for i in range(3)]
        others.append(pod("y", app="db", node="n3", cpu="3"))
        assert where(EAST_WEST[:1] + EAST_WEST[2:], pod("p", spread()), *others) == "n1"

    def test_with_too_few_domains_the_emptiest_is_one_that_is_not_there(self):
        wanted = spread(minDomains=3)
        plan = decide(EAST_WEST, *(pod(f"p{i}", wanted, created=i) for i in range(3)))
        assert len(plan.bind) == 2

    def test_nodes_it_cannot_be_on_are_no_domain(self):
        wanted = {**spread(HOSTNAME_LABEL), "nodeSelector": {ZONE_LABEL: "east"}}
        plan = decide(EAST_WEST, *(pod(f"p{i}", wanted, created=i) for i in range(4)))
        assert sorted(p.node for p in plan.bind) == ["n1", "n1", "n2", "n2"]
        counted = {**spread(HOSTNAME_LABEL, nodeAffinityPolicy="Ignore"), "nodeSelector": {ZONE_LABEL: "east"}}
        plan = decide(EAST_WEST, *(pod(f"p{i}", counted, created=i) for i in range(4)))
        assert sorted(p.node for p in plan.bind) == ["n1", "n2"]

    def test_pods_on_nodes_it_cannot_be_on_do_not_count(self):
        disks = {"n1": "ssd", "n2": "hdd", "n3": "ssd"}
        nodes = [node(n, zone=zone, labels={"disk": disks[n]}) for n, zone in zip(disks, ("a", "a", "b"), strict=True)]
        others = [pod("x", node="n2"), pod("y", node="n2"), pod("z", app="db", node="n3", cpu="3")]
        selected = {"nodeSelector": {"disk": "ssd"}}
        assert where(nodes, pod("p", {**spread(), **selected}), *others) == "n1"
        assert where(nodes, pod("p", {**spread(nodeAffinityPolicy="Ignore"), **selected}), *others) == "n3"

    def test_tainted_nodes_are_a_domain_unless_said(self):
        nodes = [node("n1"), node("n2", taints="a:NoSchedule")]
        plan = decide(nodes, *(pod(f"p{i}", spread(HOSTNAME_LABEL)) for i in range(2)))
        assert len(plan.bind) == 1
        plan = decide(nodes, *(pod(f"p{i}", spread(HOSTNAME_LABEL, nodeTaintsPolicy="Honor")) for i in range(2)))
        assert len(plan.bind) == 2

    def test_a_pod_that_its_own_constraint_does_not_select_adds_nothing(self):
        nodes = [node("n1", zone="east"), node("n2", zone="west", cordoned=True)]
        databases = [pod(f"x{i}", app="db", node="n1") for i in range(2)]
        assert where(nodes, pod("p", spread(app="db")), databases[0]) == "n1"
        assert "too many alike" in where(nodes, pod("p", spread(app="db")), *databases)

    def test_anyway_is_a_wish(self):
        wanted = spread(when="ScheduleAnyway")
        nodes = [node("n1", zone="east"), node("n2", zone="west")]
        assert where(nodes, pod("p", wanted), pod("x", node="n1"), pod("y", node="n2", app="db", cpu="3")) == "n2"
        assert where(nodes[:1], pod("p", wanted), pod("x", node="n1")) == "n1"

    def test_anyway_prefers_a_node_that_is_in_a_domain(self):
        nodes = [node("n1"), *(node(f"n{i}", labels={"rack": f"r{i}"}) for i in range(2, 14))]
        busy = [pod(f"x{i}", app="db", node=f"n{i}", cpu="3") for i in range(2, 14)]
        assert where(nodes, pod("p", spread("rack", "ScheduleAnyway")), *busy) == "n10"


class TestScores:
    def test_siblings_are_spread_over_nodes_then_zones(self):
        nodes = [*EAST_WEST, node("n4", zone="west")]
        plan = decide(nodes, *(pod(f"p{i}", owner="web", created=i) for i in range(4)))
        assert [p.node for p in plan.bind] == ["n1", "n3", "n2", "n4"]

    def test_the_fuller_of_cpu_and_memory_counts(self):
        nodes = [node("n1", cpu="10", memory="10Gi"), node("n2", cpu="10", memory="10Gi")]
        busy = [pod("x", node="n1", cpu="4"), pod("y", node="n2", cpu="2", memory="2Gi")]
        assert where(nodes, pod("p", cpu="1"), *busy) == "n2"
        assert where(nodes, pod("p", memory="6Gi"), *busy) == "n1"

    def test_an_image_that_is_there_saves_its_pull(self):
        nodes = [node("n1"), node("n2", images={"web:1": 1000})]
        assert where(nodes, pod("p")) == "n2"
        nodes = [node("n1"), node("n2", images={"web:1": 10})]
        assert where(nodes, pod("p")) == "n1"
