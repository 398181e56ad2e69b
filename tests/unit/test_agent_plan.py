"""The agent's plan: a node's state in, docker commands out."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from agent_objects import IMAGE, SPEC, Host, container, deleted, name, pod, ready
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.api.types import EnvVar, ResourceRequirements
from scheduler.agent.actions import Attach, Create, Signal, Start
from scheduler.agent.addresses import Addresses
from scheduler.agent.containers import INFRA
from scheduler.agent.environment import expand
from scheduler.agent.model import Drain, PodPlan
from scheduler.agent.network import NetworkSpec, Segment
from scheduler.agent.runtime import RuntimeRefused

pytestmark = pytest.mark.unit

MOUNTS = (
    "--mount type=bind,source=FILES/hosts,target=/etc/hosts "
    "--mount type=bind,source=/etc/resolv.conf,target=/etc/resolv.conf,readonly "
    "--mount type=bind,source=FILES/last-words/CT/0,target=/dev/termination-log"
)


def test_a_new_pod_gets_its_network_then_its_containers() -> None:
    host = Host(
        pod("p", container(command=("sh", "-c"), args=("serve $(PORT)",), env=(EnvVar(name="PORT", value="80"),)),
            container("side", working_dir="/srv",
                      resources=ResourceRequirements(requests={"cpu": "100m"}, limits={"memory": "64Mi", "cpu": "1"})))
    )  # fmt: skip
    plan = host.look()
    assert plan.summary() == "start=1"
    text = str(plan).splitlines()
    hashes = [word.split("=")[1] for line in text for word in line.split() if word.startswith("podlane.io/spec")]
    assert len(set(hashes)) == 2
    shown = "\n".join(text).replace(hashes[0], "HASH1").replace(hashes[1], "HASH2")
    shown = shown.replace("/var/lib/podlane/agent/pods/uid-p", "FILES")
    for ct in ("web", "side"):
        shown = shown.replace(MOUNTS.replace("CT", ct), "MOUNTS")
    assert shown == (
        "# start default/p\n"
        "docker create --name podlane_POD_p_default_uid-p_0 --network none --hostname p "
        "--label podlane.io/pod-ip=10.5.3.2 --cpu-shares 2 podlane/infra:1\n"
        "docker start podlane_POD_p_default_uid-p_0\n"
        "ip link add master podlane0 type veth peer name eth0 netns podlane_POD_p_default_uid-p_0 && "
        "ip -n podlane_POD_p_default_uid-p_0 address add 10.5.3.2/24 dev eth0 && "
        "ip -n podlane_POD_p_default_uid-p_0 route add default via 10.5.3.1\n"
        "echo '10.5.3.2 p' >> FILES/hosts\n"
        "install -m 666 /dev/null FILES/last-words/web/0\n"
        "docker create --name podlane_web_p_default_uid-p_0 --network container:podlane_POD_p_default_uid-p_0 "
        "--label podlane.io/spec-hash=HASH1 --cpu-shares 2 MOUNTS "
        "--env PORT=80 --entrypoint sh web:1 -c 'serve 80'\n"
        "docker start podlane_web_p_default_uid-p_0\n"
        "echo '10.5.3.2 p' >> FILES/hosts\n"
        "install -m 666 /dev/null FILES/last-words/side/0\n"
        "docker create --name podlane_side_p_default_uid-p_0 --network container:podlane_POD_p_default_uid-p_0 "
        "--label podlane.io/spec-hash=HASH2 --cpu-shares 102 --cpu-quota 100000 --memory 67108864 "
        "--workdir /srv MOUNTS web:1\n"
        "docker start podlane_side_p_default_uid-p_0"
    )


def test_what_runs_is_kept_also_by_an_agent_that_remembers_nothing() -> None:
    host = Host(pod("p"), pod("q"))
    host.sync()
    calls = list(host.runtime.calls)
    host.restart_agent()
    assert host.look().summary() == "keep=2"
    host.settle()
    assert host.runtime.calls == calls


def test_a_busy_pod_is_left_alone() -> None:
    host = Host(pod("p"), pod("q"))
    plan = host.look(busy=frozenset({"uid-p"}))
    assert plan.summary() == "start=1 busy=1"
    assert plan.pods[0].waiting == {"web": ("ContainerCreating", "")}


def test_nothing_starts_without_a_network() -> None:
    host = Host(pod("p"))
    host.network = "no subnet yet"
    plan = host.look()
    assert (plan.summary(), plan.pods[0].waiting["web"]) == (
        "wait=1",
        ("ContainerCreating", "NetworkNotReady: no subnet yet"),
    )


# --- restarts ---------------------------------------------------------------------------------


def crash(host: Host, number: int, after: float, code: int = 1) -> None:
    host.clock.advance(after)
    host.runtime.end(name("web", "p", number), code)


def test_restarts_come_at_once_then_after_10_s_doubling_to_5_min() -> None:
    host = Host(pod("p"))
    host.sync()
    waits = []
    for number in range(8):
        crash(host, number, after=1)
        waited = 0.0
        while (plan := host.sync()).bucket("wait"):
            assert plan.wake_at is not None
            waited += plan.wake_at - host.clock.now()
            host.clock.advance(plan.wake_at - host.clock.now())
        assert plan.summary() == "restart=1"
        waits.append(waited)
        assert host.running() == [f"web/p#{number + 1}"]
    assert waits == [0, 10, 20, 40, 80, 160, 300, 300]


def test_ten_minutes_of_running_are_forgiven_everything() -> None:
    host = Host(pod("p"))
    host.sync()
    crash(host, 0, after=1)
    host.sync()
    crash(host, 1, after=601)
    assert host.sync().summary() == "restart=1"
    crash(host, 2, after=1)
    plan = host.look()
    assert plan.wake_at == host.clock.now() + 10


def test_the_backoff_survives_a_restart_of_the_agent() -> None:
    host = Host(pod("p"))
    host.sync()
    crash(host, 0, after=1)
    host.sync()
    crash(host, 1, after=1)
    host.restart_agent()
    plan = host.look()
    assert plan.summary() == "wait=1"
    assert plan.pods[0].waiting["web"] == (
        "CrashLoopBackOff",
        "back-off 10s restarting failed container=web pod=p_default(uid-p)",
    )


@pytest.mark.parametrize(
    ("policy", "code", "restarted"),
    [("Always", 0, True), ("Always", 1, True), ("OnFailure", 0, False), ("OnFailure", 1, True),
     ("Never", 0, False), ("Never", 1, False)],
)  # fmt: skip
def test_restart_policies(policy: str, code: int, restarted: bool) -> None:
    host = Host(pod("p", restart_policy=policy))
    host.sync()
    crash(host, 0, after=1, code=code)
    host.settle()
    assert host.all_running() == (["POD/p#0", "web/p#1"] if restarted else [])


def test_a_finished_container_does_not_end_the_pod_s_others() -> None:
    host = Host(pod("p", container("web"), container("job"), restart_policy="OnFailure"))
    host.sync()
    host.runtime.end(name("job", "p"), 0)
    assert host.sync().summary() == "keep=1"
    assert host.all_running() == ["POD/p#0", "web/p#0"]


def test_one_ended_container_is_kept_for_its_logs() -> None:
    host = Host(pod("p"))
    host.sync()
    for number in range(3):
        crash(host, number, after=700)
        host.settle()
    kept = sorted(r.name for r in host.runtime.list() if "_web_" in r.name)
    assert kept == [name("web", "p", 2), name("web", "p", 3)]


def test_a_changed_specification_replaces_the_container() -> None:
    host = Host(pod("p"), images=(IMAGE, "web:2"))
    host.sync()
    host.pods = {"uid-p": pod("p", container(image="web:2"))}
    plan = host.sync()
    assert plan.why() == "default/p: web specification changed"
    host.sync()
    assert host.running() == ["web/p#1"]
    assert host.sync().summary() == "keep=1"


# --- network and images --------------------------------------------------------------------------


def test_a_dead_infra_container_means_the_pod_is_rebuilt() -> None:
    host = Host(pod("p", container("web"), container("side")))
    host.sync()
    host.runtime.end(name(INFRA, "p"), 137)
    plan = host.sync()
    assert plan.summary() == "rebuild=1"
    assert host.all_running() == ["POD/p#1", "side/p#1", "web/p#1"]
    assert host.sync().summary() == "keep=1"


def test_a_rebuild_is_no_crash() -> None:
    host = Host(pod("p"))
    host.sync()
    crash(host, 0, after=1)
    host.sync()
    host.runtime.end(name("web", "p", 1), 137)  # the whole engine went down
    host.runtime.end(name(INFRA, "p"), 137)
    host.sync()
    assert host.running() == ["web/p#2"]


def test_a_pod_that_may_not_restart_is_not_rebuilt() -> None:
    host = Host(pod("p", restart_policy="Never"))
    host.sync()
    host.runtime.end(name(INFRA, "p"), 137)
    host.settle()
    assert host.all_running() == []


def test_a_pod_on_a_network_that_must_go_is_moved() -> None:
    host = Host(pod("p"))
    host.sync()
    stale = frozenset(r.id for r in host.runtime.list() if "_POD_" in r.name)
    plan = host.look(stale=stale, network="subnet changed")
    assert [str(s) for s in plan.pods[0].steps] == [
        f"docker kill --signal SIGKILL {name('web', 'p')}",
        f"docker rm --force {name(INFRA, 'p')}",
    ]


def test_an_image_that_is_not_there_is_pulled_beside_the_steps() -> None:
    host = Host(pod("p", container("web", image="far:1"), container("side")))
    host.runtime.registry.add("far:1")
    plan = host.look()
    assert [str(s) for s in plan.pods[0].pulls] == ["docker pull far:1"]
    assert any(isinstance(s, Start) and s.container == "side" for s in plan.pods[0].steps)
    host.settle(2)
    assert host.running() == ["side/p#0", "web/p#0"]
    assert 'p: Pulled Successfully pulled image "far:1"' in host.told.events


def test_a_bad_image_backs_off_and_blocks_no_other_pod() -> None:
    host = Host(pod("bad", container(image="none:1")), pod("good"))
    host.sync()
    assert host.running() == ["web/good#0"]
    bad = host.look().pods[0]
    assert (bad.bucket, bad.waiting["web"][0]) == ("wait", "ErrImagePull")
    assert bad.wake_at == host.clock.now() + 10
    host.clock.advance(10)
    host.sync()
    bad = host.look().pods[0]
    assert bad.waiting["web"][0] == "ImagePullBackOff"
    assert bad.wake_at == host.clock.now() + 20
    assert host.runtime.calls.count("docker pull none:1") == 2


def test_an_image_that_may_not_be_pulled_is_waited_for() -> None:
    host = Host(pod("p", container(image="mine:1", image_pull_policy="Never")))
    host.sync()
    assert host.look().pods[0].waiting["web"][0] == "ErrImageNeverPull"
    host.runtime.add_image("mine:1")
    host.memory.forget_images()
    host.sync()
    assert host.running() == ["web/p#0"]


def test_always_pulls_once_for_each_start() -> None:
    host = Host(pod("p", container(image_pull_policy="Always")))
    host.runtime.registry.add(IMAGE)
    host.settle(4)
    assert host.running() == ["web/p#0"]
    assert host.runtime.calls.count(f"docker pull {IMAGE}") == 1
    crash(host, 0, after=1)
    host.settle(4)
    assert host.running() == ["web/p#1"]
    assert host.runtime.calls.count(f"docker pull {IMAGE}") == 2


def test_a_command_that_cannot_be_run_backs_off() -> None:
    host = Host(pod("p", container(image="bad:1"), container("side")), images=(IMAGE, "bad:1"))
    host.runtime.unstartable["bad:1"] = 'exec: "nonsense": not found'
    host.settle()
    assert host.running() == ["side/p#0"]
    p = host.look().pods[0]
    assert p.waiting["web"][0] == "RunContainerError"
    assert host.runtime.calls.count(f"docker start {name('web', 'p')}") == 1


def test_a_network_that_cannot_be_had_is_tried_again_after_a_second() -> None:
    host = Host(pod("p"))
    host.podnet.refusal = "no buffer space available"
    host.sync()
    assert host.look().wake_at == host.clock.now() + 1
    host.clock.advance(1)
    host.sync()
    assert host.look().wake_at == host.clock.now() + 2
    assert host.all_running() == ["POD/p#0"]
    assert "no buffer space" in host.look().pods[0].waiting["web"][1]
    host.podnet.refusal = ""
    host.clock.advance(2)
    host.sync()
    assert host.all_running() == ["POD/p#0", "web/p#0"]


def test_what_runs_unattached_is_attached_and_nothing_is_restarted() -> None:
    host = Host(pod("p"), pod("q"))
    host.sync()
    running = host.all_running()
    host.podnet.delete_bridge()
    host.podnet.ensure(SPEC)
    plan = host.sync()
    assert plan.why() == ("default/p: not attached to the pod network, default/q: not attached to the pod network")
    assert [type(step) for p in plan.pods for step in p.steps] == [Attach, Attach]
    assert (host.all_running(), host.look().summary()) == (running, "keep=2")


def test_without_a_network_what_runs_unattached_is_left_alone() -> None:
    host = Host(pod("p"))
    host.sync()
    host.podnet.delete_bridge()
    plan = host.look(network="no subnet", addresses=None)
    assert (plan.summary(), plan.pods[0].steps) == ("wait=1", ())


def test_addresses_are_dealt_once_and_a_full_subnet_is_told() -> None:
    host = Host(*(pod(f"p{n}") for n in range(4)))
    small = NetworkSpec("10.5.3.0/29", "10.5.3.1", 1450)
    plan = host.look(addresses=Addresses(small, frozenset({"10.5.3.3", "10.5.3.5"})))
    given = [s.ip for p in plan.pods for s in p.steps if isinstance(s, Attach)]
    assert given == ["10.5.3.2", "10.5.3.4", "10.5.3.6"]
    assert plan.pods[3].waiting["web"] == (
        "ContainerCreating",
        "FailedCreatePodSandBox: no free address in 10.5.3.0/29",
    )
    assert plan.summary() == "start=3 wait=1"


def test_a_pod_of_two_families_has_both_addresses_and_both_routes() -> None:
    host = Host(pod("p"))
    host.spec = replace(SPEC, second=Segment("fd00:5:0:3::/64", "fd00:5:0:3::1"))
    host.podnet.ensure(host.spec)
    attach = next(s for s in host.look().pods[0].steps if isinstance(s, Attach))
    assert str(attach).split(" && ") == [
        "ip link add master podlane0 type veth peer name eth0 netns podlane_POD_p_default_uid-p_0",
        "ip -n podlane_POD_p_default_uid-p_0 address add 10.5.3.2/24 dev eth0",
        "ip -n podlane_POD_p_default_uid-p_0 route add default via 10.5.3.1",
        "ip -n podlane_POD_p_default_uid-p_0 address add fd00:5:0:3::2/64 dev eth0",
        "ip -n podlane_POD_p_default_uid-p_0 route add default via fd00:5:0:3::1",
    ]
    host.sync()
    assert host.files.written == {"/var/lib/podlane/agent/pods/uid-p/hosts": "10.5.3.2 fd00:5:0:3::2 p"}
    (infra,) = [r for r in host.records() if r.ip]
    assert infra.ips == ("10.5.3.2", "fd00:5:0:3::2")
    assert host.look().summary() == "keep=1"
    host.restart_agent()
    assert host.look().summary() == "keep=1"


def test_ipv6_comes_and_goes_without_a_restart() -> None:
    host = Host(pod("p"))
    host.sync()
    running = host.all_running()
    host.spec = replace(SPEC, second=Segment("fd00:5:0:3::/64", "fd00:5:0:3::1"))
    for network, expected in (
        (host.spec, ("10.5.3.2", "fd00:5:0:3::2")),
        (replace(SPEC, second=Segment("fd00:5:0:4::/64", "fd00:5:0:4::1")), ("10.5.3.2", "fd00:5:0:4::2")),
        (SPEC, ("10.5.3.2",)),
    ):
        host.spec = network
        host.podnet.ensure(network)
        assert [type(s) for s in host.sync().pods[0].steps] == [Attach]
        assert [r.ips for r in host.records() if r.ip] == [expected]
    assert host.all_running() == running


# --- ends -------------------------------------------------------------------------------------------


def test_deletion_drains_asks_waits_kills_removes_and_releases() -> None:
    host = Host(pod("p"))
    host.sync()
    web = name("web", "p")
    host.runtime.ignores_term.add(web)
    host.pods = {"uid-p": ready(deleted(host.pods["uid-p"], grace=30))}
    start = host.clock.now()

    host.drains = {"uid-p": Drain(waits_for="proxyd on n2")}
    plan = host.sync()
    assert (plan.summary(), plan.pods[0].why) == ("stop=1", "draining, waiting for proxyd on n2")
    assert (plan.pods[0].steps, plan.wake_at) == ((), start + 10)
    host.clock.advance(2)
    host.drains = {"uid-p": Drain(quiet_at=start + 2)}
    plan = host.sync()
    assert (plan.pods[0].why, plan.pods[0].steps, plan.wake_at) == ("draining", (), start + 3)
    host.clock.advance(1)
    plan = host.sync()
    assert [str(s) for s in plan.pods[0].steps] == [f"docker kill --signal SIGTERM {web}"]
    assert plan.pods[0].undrained == ""
    plan = host.sync()
    assert (plan.pods[0].steps, plan.wake_at) == ((), start + 30)
    host.clock.advance(27)
    assert [str(s) for s in host.sync().pods[0].steps] == [f"docker kill --signal SIGKILL {web}"]
    assert [str(s) for s in host.sync().pods[0].steps] == [
        f"docker rm --force {web}",
        f"docker rm --force {name(INFRA, 'p')}",
        "podlane delete pod p --namespace default --force",
    ]
    assert host.pods == {}
    assert host.runtime.list() == ()


@pytest.mark.parametrize(("grace", "limit"), [(30, 10), (60, 10), (11, 9), (5, 3), (3, 1.5), (1, 0.5)])
def test_a_drain_ends_at_its_limit_which_leaves_some_of_the_grace_period(grace: int, limit: float) -> None:
    host = Host(pod("p"))
    host.sync()
    host.pods = {"uid-p": ready(deleted(host.pods["uid-p"], grace=grace))}
    start = host.clock.now()
    host.drains = {"uid-p": Drain(waits_for="proxyd on n2")}
    assert host.sync().wake_at == start + limit
    host.clock.advance(limit)
    (plan,) = host.sync().pods
    assert [s.signal for s in plan.steps if isinstance(s, Signal)] == ["SIGTERM"]
    assert plan.undrained == "proxyd on n2"
    assert host.look().pods[0].undrained == ""  # it is told once


def test_what_is_quiet_late_lingers_no_longer_than_the_limit() -> None:
    host = Host(pod("p"))
    host.sync()
    host.pods = {"uid-p": ready(deleted(host.pods["uid-p"]))}
    start = host.clock.now()
    host.sync()
    host.drains = {"uid-p": Drain(quiet_at=start + 9.5)}
    host.clock.advance(9.5)
    assert host.sync().wake_at == start + 10


@pytest.mark.parametrize(
    ("is_ready", "drains"),
    [
        (False, {}),  # nobody sends it anything
        (True, {"uid-p": Drain(quiet_at=1_700_000_000, served=False)}),
    ],
)
def test_a_pod_that_is_sent_nothing_is_told_to_end_at_once(is_ready: bool, drains: dict[str, Drain]) -> None:
    host = Host(pod("p"))
    host.sync()
    going = deleted(host.pods["uid-p"])
    host.pods = {"uid-p": ready(going) if is_ready else going}
    host.drains = drains
    assert [s.signal for s in host.sync().pods[0].steps if isinstance(s, Signal)] == ["SIGTERM"]


def test_a_pod_whose_probe_fails_while_it_drains_is_drained_all_the_same() -> None:
    host = Host(pod("p"))
    host.sync()
    going = deleted(host.pods["uid-p"])
    host.pods = {"uid-p": ready(going)}
    host.sync()
    host.pods = {"uid-p": going}
    assert host.sync().pods[0].steps == ()


def test_a_grace_period_of_nothing_kills_at_once() -> None:
    host = Host(pod("p"))
    host.sync()
    host.pods = {"uid-p": deleted(host.pods["uid-p"], grace=0)}
    assert [s.signal for s in host.sync().pods[0].steps if isinstance(s, Signal)] == ["SIGKILL"]
    host.sync()
    assert host.pods == {}


def test_a_pod_that_never_started_is_released_at_once() -> None:
    host = Host(deleted(pod("p")))
    host.sync()
    assert host.pods == {}


def test_containers_of_a_pod_not_bound_here_end_within_its_own_grace_period() -> None:
    host = Host(pod("p", termination_grace_period_seconds=7))
    host.sync()
    host.runtime.ignores_term.add(name("web", "p"))
    host.pods = {}
    plan = host.sync()
    assert (plan.summary(), plan.wake_at) == ("orphan=1", host.clock.now() + 7)
    assert [str(s) for s in plan.pods[0].steps] == [f"docker kill --signal SIGTERM {name('web', 'p')}"]
    host.clock.advance(7)
    host.settle(2)
    assert host.runtime.list() == ()


def test_a_store_that_is_away_does_not_keep_the_release_spinning() -> None:
    host = Host(deleted(pod("p")))

    def refuse(_pod: object) -> None:
        raise RuntimeRefused("delete pod: the store is away")

    host.steps._release = refuse
    host.sync()
    plan = host.look()
    assert plan.pods[0].steps == ()
    assert plan.wake_at == host.clock.now() + 1


# --- interruption --------------------------------------------------------------------------------------


def interrupted(host: Host, planned: PodPlan, count: int) -> None:
    """The agent dies after `count` steps of a plan."""
    host.steps.carry_out(replace(planned, steps=planned.steps[:count]))
    host.restart_agent()


@settings(max_examples=150, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 9), max_size=6),
    kills=st.lists(st.sampled_from(["web", "side", INFRA, "bridge", ""]), max_size=6),
)
def test_whatever_dies_and_whenever_the_agent_restarts_the_pod_ends_up_running_once(
    cuts: list[int], kills: list[str]
) -> None:
    host = Host(pod("p", container("web"), container("side")))
    for cut, kill in zip(cuts, kills + [""] * len(cuts), strict=False):
        interrupted(host, host.look().pods[0], cut)
        if kill == "bridge":
            host.podnet.delete_bridge()
            host.podnet.ensure(SPEC)
        for running in host.runtime.running():
            if kill and f"_{kill}_" in running:
                host.runtime.end(running, 137)
        host.clock.advance(3)
    for _ in range(12):
        host.sync()
        host.clock.advance(300)
    running = host.all_running()
    assert [x.split("#")[0] for x in running] == ["POD/p", "side/p", "web/p"]
    records = {r.name: r for r in host.runtime.list()}
    infra = next(r for r in records.values() if r.running and "_POD_" in r.name)
    assert all(r.joined == infra.id for r in records.values() if r.running and r is not infra)
    assert host.podnet.look(host.runtime.process(infra.id)[1]) is not None
    assert host.look().summary() == "keep=1"


@settings(max_examples=100, deadline=None)
@given(cuts=st.lists(st.integers(0, 6), max_size=6))
def test_a_deletion_interrupted_anywhere_leaves_nothing(cuts: list[int]) -> None:
    host = Host(pod("p", container("web"), container("side")))
    host.sync()
    host.pods = {"uid-p": ready(deleted(host.pods["uid-p"], grace=2))}
    for cut in cuts:
        plans = host.look().pods
        if plans:
            interrupted(host, plans[0], cut)
        host.clock.advance(1)
    for _ in range(6):
        host.sync()
        host.clock.advance(2)
    assert host.pods == {}
    assert host.runtime.list() == ()


# --- translation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "result"),
    [("$(A)", "1"), ("x$(A)$(B)y", "x12y"), ("$(NONE)", "$(NONE)"), ("$$(A)", "$(A)"), ("$A", "$A"),
     ("$$$(A)", "$1"), ("$(A", "$(A"), ("100$", "100$")],
)  # fmt: skip
def test_variables_are_expanded_as_kubernetes_does(text: str, result: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == result


def test_variables_may_use_those_before_them() -> None:
    env = (EnvVar(name="A", value="1"), EnvVar(name="B", value="$(A)$(C)"), EnvVar(name="C", value="3"))
    create = next(s for s in Host(pod("p", container(env=env))).look().pods[0].steps if isinstance(s, Create))
    assert create.config.env == ()
    web = [s for s in Host(pod("p", container(env=env))).look().pods[0].steps if isinstance(s, Create)][1]
    assert web.config.env == ("A=1", "B=1$(C)", "C=3")


def test_a_changed_probe_needs_no_new_container() -> None:
    host = Host(pod("p"))
    host.sync()
    changed = msgspec.structs.replace(container(), image_pull_policy="Never")
    host.pods = {"uid-p": pod("p", changed)}
    assert host.look().summary() == "keep=1"
