"""What proxyd's commands print, from tables and a store in memory; their options and their mistakes."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from click.shell_completion import BashComplete
from click.testing import CliRunner
from proxyd_objects import (
    NODE_ADDRESS,
    PLACE,
    POD_NETWORK,
    SERVICE_RANGE,
    SKELETON,
    VIP,
    index_of,
    service,
    settled,
    slice_of,
)

from podlane.api.codec import encode
from podlane.api.types import ClusterConfig
from podlane.runtime.clock import ScriptedClock
from podlane.store import keys
from podlane.store.config import StoreConfig
from podlane.store.interface import Put
from podlane.store.memory import MemoryStore
from proxyd.cli import main
from proxyd.conntrack import Flows
from proxyd.explain.answers import Answers, ask, read_readiness
from proxyd.explain.listing import listing
from proxyd.explain.names import Names
from proxyd.explain.report import render as render_status
from proxyd.explain.report import status
from proxyd.explain.servicelist import owner_of, render, render_one, services
from proxyd.explain.view import KernelState, Seen, Stored, read_store
from proxyd.explain.view import index_of as stored_index
from proxyd.options import Site
from proxyd.tables import IPV4, Frontend, Tables, Target

pytestmark = pytest.mark.unit

WEB = service("web", VIP, "http:80=30080", type="NodePort")
WEB_SLICE = slice_of("web", ["10.5.1.2", "10.5.2.2 node2", "10.5.2.3 node2 ending", "10.5.1.9 unready"], "http:8080")
SITE = Site("127.0.0.1", 10256, StoreConfig(), "node1", "/coreos.com/network")


def seen(*objects: Any, tables: Tables | None = None) -> Seen:
    index = index_of(*objects)
    stored = Stored(dict(index.services), {}, (POD_NETWORK,), (SERVICE_RANGE,))
    kernel = KernelState({IPV4: settled(index) if tables is None else tables}, {IPV4: SKELETON}, {}, frozenset())
    return Seen(stored, kernel, index)


# --- services ----------------------------------------------------------------------------


def test_each_frontend_is_a_line_with_where_it_leads():
    look = seen(WEB, WEB_SLICE, service("empty", "10.96.0.2", "53/UDP"), service("headless", "None"))
    counts = {(Frontend(VIP, "TCP", 80), Target("10.5.1.2", 8080)): Flows(3, 4096, 12)}
    found = services(look, counts, sorted(look.stored.services))
    head, *lines = render(found, wide=False).splitlines()
    assert head.split("   ")[-1] == "CONNECTIONS"
    assert lines == [
        "default/empty      ClusterIP   10.96.0.2:53/udp          -      refused, no endpoint   at random   0",
        "default/headless   ClusterIP   -                         -      not proxied            -           -",
        "default/web        NodePort    10.96.0.1:80/tcp          http   2 endpoints            at random   3",
        "default/web        NodePort    192.168.64.11:30080/tcp   http   2 endpoints            at random   0",
    ]
    wide = render(found, wide=True).splitlines()
    assert [line.split()[4:] for line in wide if VIP in line] == [
        ["10.5.1.2:8080", "node1", "ready", "3", "4096"],
        ["10.5.2.2:8080", "node2", "ready", "0", "-"],
    ]
    json.dumps(found)


def test_a_flow_to_an_endpoint_that_gets_no_new_ones_is_shown():
    counts = {(Frontend(VIP, "TCP", 80), Target("10.5.2.3", 8080)): Flows(1, None, None)}
    found = services(seen(WEB, WEB_SLICE), counts, ["default/web"])
    line = next(each for each in render(found, wide=True).splitlines() if "10.5.2.3" in each and VIP in each)
    assert "serving, terminating, gets no new ones   1" in line


def test_one_service_in_full():
    web = service(
        "web",
        VIP,
        "http:80=30080",
        type="LoadBalancer",
        external_traffic_policy="Local",
        load_balancer_source_ranges=("192.0.2.0/24",),
        health_check_node_port=30999,
        affinity=600,
        balance="maglev",
    )
    (found,) = services(seen(web, WEB_SLICE), {}, ["default/web"])
    assert render_one(found, wide=False).splitlines() == [
        "Service:        default/web, LoadBalancer",
        "Policy:         internal Cluster, external Local",
        "Spread:         maglev, a client stays for 10m",
        "Sources:        192.0.2.0/24",
        "Health check:   port 30999",
        "",
        "FRONTEND                  KIND        PORT   LEADS TO",
        "10.96.0.1:80/tcp          cluster     http   2 endpoints",
        "192.168.64.11:30080/tcp   node-port   http   2 endpoints, 1 for clients outside",
        "",
        "ENDPOINT   NODE    WHERE       STATE                  POD",
        "10.5.1.2   node1   here        ready                  -",
        "10.5.2.2   node2   elsewhere   ready                  -",
        "10.5.2.3   node2   elsewhere   serving, terminating   -",
        "10.5.1.9   node1   here        not ready              -",
    ]


def test_what_the_kernel_has_otherwise_is_said_at_the_frontend():
    look = seen(WEB, WEB_SLICE, tables=Tables(IPV4))
    assert "2 endpoints (the kernel has it otherwise: proxyd plan)" in render(
        services(look, {}, ["default/web"]), wide=False
    )
    bare = Seen(look.stored, KernelState({}, {}, {}, frozenset()), look.index)
    assert "(the kernel has no table for IPv4)" in render(services(bare, {}, ["default/web"]), wide=False)


def test_a_service_whose_address_another_one_has():
    look = seen(service("a", VIP, "80"), service("b", VIP, "80"))
    (found,) = services(look, {}, ["default/b"])
    assert "another service has its address" in render([found], wide=False)
    assert f"serve default/b: {VIP}:80/tcp already belongs to service default/a" in render_one(found, wide=False)


def test_a_service_is_found_by_its_name_and_by_its_address():
    look = seen(WEB, WEB_SLICE)
    assert [owner_of(look, each) for each in ("web", "default/web", VIP, "other/web", "10.9.9.9")] == [
        "default/web",
        "default/web",
        "default/web",
        None,
        None,
    ]


# --- ruleset -----------------------------------------------------------------------------


def test_the_tables_as_nft_lists_them_with_names():
    look = seen(WEB, WEB_SLICE)
    text = listing(SKELETON, look.kernel.tables[IPV4], look.names)
    lines = [line.strip() for line in text.splitlines()]
    assert "table ip podlane {" in lines
    for element in (
        "10.96.0.1 . tcp . 80 : goto lb2,         # default/web:http",
        "10.96.0.1 . tcp . 80 . 0x00000001 : 10.5.2.2 . 8080,         # default/web:http on node2",
        "10.96.0.1,  # default/web",
        "10.5.1.2 . 10.5.1.2,  # on node1",
        "10.5.0.0/16,",
    ):
        assert element in lines
    assert "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @endpoints" in lines
    assert text.count("{") == text.count("}")


def test_without_a_store_the_tables_have_no_names():
    text = listing(SKELETON, seen(WEB, WEB_SLICE).kernel.tables[IPV4], Names(None))
    assert "goto lb2,\n" in text
    assert "#" not in text


def test_only_what_is_about_one_service():
    other = service("other", "10.96.0.2", "443", affinity=60)
    look = seen(WEB, WEB_SLICE, other, slice_of("other", ["10.5.1.7"]))
    text = listing(SKELETON, look.kernel.tables[IPV4], look.names, "default/other")
    assert VIP not in text
    assert "10.96.0.2 . tcp . 443 : goto lb1-aff60,  # default/other" in text
    assert "chain lb1-aff60 {" in text
    assert "chain lb2 {" not in text
    assert ": 10.5.1.7 . 8080,  # default/other on node1" in text


# --- status ------------------------------------------------------------------------------

SAID: dict[str, Any] = {
    "pid": 17,
    "startedAt": 1000.0,
    "node": "node1",
    "zone": "a",
    "ready": True,
    "nodePortAddresses": [NODE_ADDRESS],
    "services": 3,
    "leftOut": {},
    "clashes": [],
    "healthCheckFailures": [],
    "families": {
        "IPv4": {
            "podNetworks": [POD_NETWORK],
            "serviceRanges": [SERVICE_RANGE],
            "elements": {"services": 4, "endpoints": 9},
            "chains": 2,
            "retiring": 1,
        }
    },
    "repairs": 2,
    "syncedAt": 1290.0,
    "verifiedAt": 1280.0,
    "acknowledgedRevision": 77,
}


def test_a_proxyd_that_is_well():
    found = status(Answers("127.0.0.1:10256", SAID), None, [])
    assert found["ok"]
    assert render_status(found, 1300.0).splitlines() == [
        "Proxyd:         ready, pid 17, up 5m",
        "Node:           node1, zone a",
        "Node ports:     served at 192.168.64.11",
        "Services:       3 proxied",
        "Last sync:      10s ago",
        "Last verify:    20s ago, 2 repairs since the start",
        "Acknowledged:   endpoint slices up to revision 77",
        "IPv4:           pods 10.5.0.0/16, services 10.96.0.0/16",
        "                4 frontends served, 9 other elements, 2 chains, 1 slots to be deleted",
    ]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"leftOut": {"10.96.0.9:80/tcp": "no space left"}}, "Left out:       10.96.0.9:80/tcp: no space left"),
        ({"clashes": ["serve b: taken"]}, "Clash:          serve b: taken"),
        (
            {"healthCheckFailures": ["listen on 0.0.0.0:30999: in use"]},
            "Health check:   listen on 0.0.0.0:30999: in use",
        ),
    ],
    ids=["left-out", "clash", "health-check"],
)
def test_what_is_not_served_is_named_and_is_not_well(change, line):
    found = status(Answers("x", {**SAID, **change}), None, [])
    assert not found["ok"]
    assert line in render_status(found, 1300.0).splitlines()


def test_one_that_is_not_ready_says_what_it_waits_for():
    found = status(Answers("x", {**SAID, "ready": False}, {"store": "no list yet", "kernel": "not compared"}), None, [])
    assert not found["ok"]
    assert render_status(found, 1300.0).splitlines()[:3] == [
        "Proxyd:         NOT READY, pid 17, up 5m",
        "Waits for:      store: no list yet",
        "                kernel: not compared",
    ]


def test_without_a_proxyd_the_kernel_is_shown():
    look = seen(WEB, WEB_SLICE)
    found = status(Answers("127.0.0.1:10256"), look.kernel, [])
    assert not found["ok"]
    text = render_status(found, 0.0)
    assert "NOT RUNNING, or does not answer on 127.0.0.1:10256; the kernel goes on serving what it had" in text
    assert "2 frontends served" in text
    nothing = render_status(status(Answers("x"), KernelState({}, {}, {IPV4: "no map"}, frozenset()), ["oh"]), 0.0)
    assert "has no table of proxyd's: no service address works on this host" in nothing
    assert "Kernel:   no map" in nothing
    assert "Error:    oh" in nothing


# --- the store ---------------------------------------------------------------------------


def test_the_store_is_read_as_the_daemon_reads_it():
    store = MemoryStore(ScriptedClock(0))
    puts = [Put("/coreos.com/network/config", b'{"Network":"10.5.0.0/16"}')]
    puts.append(Put(keys.CLUSTER_CONFIG, encode(ClusterConfig(service_cidr="10.96.0.0/16,fd00:96::/112"))))
    for each in (WEB, WEB_SLICE):
        puts.append(Put(keys.key_for(type(each), "default", each.metadata.name), encode(each)))
    puts.append(Put(keys.key_for(type(WEB), "default", "broken"), b"{"))
    store.txn([], puts)
    stored = read_store(store, SITE)
    assert set(stored.services) == {"default/web"}
    assert stored.pod_networks == ("10.5.0.0/16",)
    assert stored.service_ranges == ("10.96.0.0/16", "fd00:96::/112")
    assert [each.rpartition("/")[2] for each in stored.undecodable] == ["broken"]
    fixed = Site("", 1, StoreConfig(), "node1", "/x", ("10.7.0.0/16",), ("10.8.0.0/16",))
    assert read_store(store, fixed).pod_networks == ("10.7.0.0/16",)


def test_what_the_kernel_refused_to_the_daemon_is_not_asked_for_again():
    stored = Stored({"default/web": WEB}, {"default/web-1": WEB_SLICE})
    refused = {f"{VIP}:80/tcp": "no space left on device"}
    index = stored_index(stored, PLACE, Answers("x", {"leftOut": refused}))
    assert list(index.left_out.values()) == ["no space left on device"]
    assert not stored_index(stored, PLACE, Answers("x")).left_out


# --- options, as typed -------------------------------------------------------------------


def test_the_reasons_are_read_from_the_readiness_lines():
    text = "[+]started ok\n[-]store failed: service: no list yet\nreadyz check failed\n"
    assert read_readiness(text) == {"store": "service: no list yet"}


class _Daemon(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(self.server.document).encode() if self.path == "/status" else b"[-]store failed: why\n"  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - as in the base class


@pytest.fixture
def daemon() -> Iterator[http.server.HTTPServer]:
    server = http.server.HTTPServer(("127.0.0.1", 0), _Daemon)
    server.document = {**SAID, "options": {"node_name": "node7"}}  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_status_asks_the_one_that_runs(daemon):
    port = str(daemon.server_address[1])
    answers = ask("0.0.0.0", int(port))
    assert (answers.runs, dict(answers.waiting)) == (True, {"store": "why"})
    result = CliRunner().invoke(main, ["status", "--healthz-port", port, "-o", "json"])
    assert result.exit_code == 1  # it waits for something
    assert json.loads(result.stdout)["daemon"]["node"] == "node1"


def test_options_default_to_what_the_running_one_was_started_with(daemon):
    import click

    from proxyd.options import site_options

    sites = []
    command = click.command()(site_options(lambda *, site: sites.append(site)))
    port = str(daemon.server_address[1])
    for more in ([], ["--node-name=mine"]):
        for where in (["--healthz-port", port], ["--healthz-port", port, "--healthz-ip", "127.0.0.1"]):
            CliRunner().invoke(command, [*where, *more], catch_exceptions=False)
    assert [each.node for each in sites] == ["node7", "node7", "mine", "mine"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trace", "x", "10.96.0.1:80"], 'error: SRC: expected an IP address, such as a pod\'s, got "x"'),
        (["trace", "10.5.1.2", "10.96.0.1:99999"], 'error: DST: expected a port from 1 to 65535, got "99999"'),
        (["trace", "10.5.1.2"], "Missing argument 'DST[:PORT]'"),
        (["trace", "10.5.1.2", "web", "--proto", "icmp"], "'icmp' is not one of 'tcp', 'udp', 'sctp'"),
        (["services", "-o", "yaml"], "'yaml' is not one of 'table', 'wide', 'json'"),
        (["plan", "--cluster-cidr", "10.5/16"], "expected a network such as 10.5.0.0/16"),
        (["status", "--healthz-port", "0"], "0 is not in the range 1<=x<=65535"),
    ],
    ids=lambda each: each[0] if isinstance(each, list) else "",
)
def test_a_mistake_ends_with_2_and_says_which(argv, message):
    result = CliRunner().invoke(main, argv)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stdout == ""


def test_every_command_has_its_help_and_is_completed():
    names = ["plan", "ruleset", "run", "services", "status", "trace", "uninstall"]
    completer = BashComplete(main, {}, "proxyd", "_PROXYD_COMPLETE")
    assert [each.value for each in completer.get_completions([], "")] == names
    assert [each.value for each in completer.get_completions(["trace"], "--li")] == ["--live"]
    assert [each.value for each in completer.get_completions(["services", "-o"], "")] == ["table", "wide", "json"]
    for name in names:
        result = CliRunner().invoke(main, [name, "--help"])
        assert result.exit_code == 0
        assert len(result.stdout.splitlines()) > 5
