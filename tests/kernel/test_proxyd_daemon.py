"""The daemon as its supervisor sees it: real etcd, real kernel, signals, and traffic that must not notice."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from podlane.store.keys import proxy_key
from tests.kernel.conftest import eventually
from tests.kernel.proxyd_nets import BOTH, FAR, NODE_TCP, POD1, POD2, POD3, TCP, UDP, V4, V6, endpoints, service
from tests.kernel.proxyd_run import PORT, PROGRAM, Callers, answers, tables
from tests.kernel.proxyd_world import ask

pytestmark = pytest.mark.kernel


def test_waits_for_the_lists_then_serves_and_tells_when_it_is_ready(proxyd):
    world = proxyd.world
    world.serve(POD1)
    proxyd.start()
    eventually(lambda: proxyd.probe("/livez")[0] == 200, timeout=30)
    eventually(lambda: "kernel" in proxyd.probe("/readyz")[1], timeout=30)
    time.sleep(0.5)
    assert tables(world) == ""
    assert proxyd.probe("/readyz")[0] == 503
    proxyd.serve([POD1], NODE_TCP)
    proxyd.configure()
    proxyd.wait_ready()
    for net in (V4, V6):
        for ns in (world.pods[POD3], world.client, world.node):
            assert world.call(ns, net.vip)[0] == POD1
            assert world.call(ns, net.node, 30080)[0] == POD1
        # the pod's own port on the bridge was given the leave to send back
        assert world.call(world.pods[POD1], net.vip)[0] == POD1
    assert proxyd.metric("podlane_proxyd_elements") > 0
    assert proxyd.metric("podlane_proxyd_repairs_total") == 0
    status = Path(f"/proc/{proxyd.process.pid}/status").read_text()
    assert int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) < 70_000
    assert proxyd.signal(signal.SIGTERM) == 0
    assert "stopped" in proxyd.log.read_text()
    # its work stays
    for net in (V4, V6):
        assert world.call(world.pods[POD3], net.vip)[0] == POD1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ended_and_started_again_nobody_notices(proxyd, how):
    world = proxyd.world
    world.serve(POD1, POD2, FAR, udp=5353)
    proxyd.begin([POD1, POD2], TCP, UDP)
    world.node.run("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600")  # longer than the test may take
    places = [(ns, net.vip) for ns in (world.pods[POD3], world.client, world.node) for net in (V4, V6)]
    held = [world.connect(*place) for place in places] + [world.flow(*place) for place in places]
    kept = [ask(each)[0] for each in held]
    with Callers(world) as callers:
        for wanted in ([POD1, POD2], [POD1, POD2, FAR]):
            callers.more()
            proxyd.signal(how)
            proxyd.scale(wanted, TCP, UDP)  # while nobody looks
            callers.more()
            proxyd.start()
            proxyd.wait_ready()
            callers.more()
            if wanted == [POD1, POD2]:
                # nothing to do but to load the rules once and find everything as it should be
                assert proxyd.metric("podlane_proxyd_commits_total") == 0
        eventually(lambda: FAR in callers.answered, timeout=30)
    assert callers.failures == []
    assert [ask(each)[0] for each in held] == kept


def test_without_etcd_traffic_goes_on_and_it_catches_up(proxyd):
    world = proxyd.world
    world.serve(POD1, POD2)
    proxyd.begin([POD1])
    proxyd.etcd.stop(signal.SIGKILL)
    with Callers(world) as callers:
        callers.more(400)
        assert proxyd.probe("/readyz")[0] == 200
        # what somebody breaks meanwhile is repaired
        world.nft_script("delete table ip podlane")
        proxyd.wait_answer(POD1)
        callers.more()
    # between the deletion and the repair they were refused, or found no route
    assert all(ip == V4.vip for ip, _ in callers.failures)
    proxyd.etcd.start()
    proxyd.scale([POD2])
    proxyd.wait_answer(POD2)
    proxyd.wait_answer(POD2, V6.vip)


def test_without_etcd_from_the_start_the_kernel_keeps_what_it_has(proxyd):
    world = proxyd.world
    world.serve(POD1)
    proxyd.begin([POD1])
    proxyd.signal(signal.SIGKILL)
    proxyd.etcd.stop(signal.SIGKILL)
    before = world.node.run("nft list ruleset")
    proxyd.start()
    eventually(lambda: proxyd.probe("/livez")[0] == 200, timeout=30)
    with Callers(world) as callers:
        callers.more(400)
    assert callers.failures == []
    assert proxyd.probe("/readyz")[0] == 503
    assert world.node.run("nft list ruleset") == before


def test_affinity_outlives_the_daemon(proxyd):
    world = proxyd.world
    world.serve(POD1, POD2, POD3)
    proxyd.configure()
    proxyd.put(service(V4, affinity=300), endpoints(V4, [POD1, POD2, POD3]))
    proxyd.start()
    proxyd.wait_ready()
    clients = [V4.source(number) for number in range(1, 13)]
    first = [world.call(world.client, source=source)[0] for source in clients]
    assert len(set(first)) > 1
    proxyd.signal(signal.SIGKILL)
    proxyd.start()
    proxyd.wait_ready()
    proxyd.put(endpoints(V4, [POD1, POD2, POD3, FAR]))
    eventually(lambda: f"{V4.pods[FAR]} . 8080" in world.node.run("nft list map ip podlane addresses"), timeout=30)
    assert [world.call(world.client, source=source)[0] for source in clients] == first


@BOTH
def test_a_family_alone_has_the_only_table(proxyd, net):
    world = proxyd.world
    world.serve(POD1)
    proxyd.configure(net)
    proxyd.serve([POD1])
    proxyd.start()
    proxyd.wait_ready()
    assert world.call(world.client, net.vip)[0] == POD1
    assert tables(world) == f"table {net.name} podlane\n"


def test_a_change_is_taken_up_and_uninstall_removes_everything(proxyd):
    world = proxyd.world
    for family in ("-4", "-6"):  # so that proxyd needs routes of its own
        world.node.run(f"ip {family} route delete default")
    world.serve(POD1, POD2)
    proxyd.begin([POD1])
    world.nft_script("table inet other { chain c { counter; }; }")
    proxyd.scale([POD2])
    for net in (V4, V6):
        proxyd.wait_answer(POD2, net.vip)
        assert json.loads(world.node.run(f"ip -j -{6 if net is V6 else 4} route show proto 253"))
    proxyd.etcd.ctl("del", "/registry/services/specs/default/web")
    eventually(lambda: V4.vip not in world.node.run("nft list map ip podlane services"), timeout=30)
    eventually(lambda: proxyd.etcd.ctl("get", proxy_key("node")), timeout=30)
    command = [str(PROGRAM), "uninstall", f"--etcd-endpoints={proxyd.etcd.endpoint}", "--node-name=node"]
    command.append(f"--healthz-port={PORT}")
    assert not world.node.ok(command)  # while it runs
    assert answers(world, world.client, V6.vip) == POD2
    proxyd.signal(signal.SIGTERM)
    world.node.run(command)
    assert tables(world) == "table inet other\n"
    assert proxyd.etcd.ctl("get", proxy_key("node")) == ""
    for family in ("-4", "-6"):
        assert json.loads(world.node.run(f"ip -j {family} route show proto 253") or "[]") == []
    world.node.run(command)  # twice is harmless
