"""/healthz and /livez as kube-proxy has them, and the metrics by its names."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from podlane.runtime import metrics
from podlane.runtime.clock import FakeClock
from podlane.runtime.daemon import Daemon
from podlane.runtime.health import HealthServer
from proxyd import proxymetrics
from proxyd.proxyhealth import ProxyHealth

pytestmark = pytest.mark.unit

PERIOD = 30.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start=1_800_000_000.0)


@pytest.fixture
def health(clock: FakeClock) -> ProxyHealth:
    return ProxyHealth(clock, PERIOD)


def test_a_quiet_proxy_is_healthy_before_its_first_sync_and_long_after_its_last(health, clock):
    clock.advance(1000)
    assert health.healthy()
    health.synced()
    clock.advance(1000)
    assert health.healthy()
    assert health.live()


def test_a_change_may_wait_for_two_periods(health, clock):
    health.synced()
    health.queued()
    clock.advance(59)
    health.queued()  # a later change does not make the first one wait less
    assert health.live()
    clock.advance(1)
    assert not health.live()
    assert not health.healthy()
    health.synced()
    assert health.live()


def test_a_sync_does_not_settle_what_came_after_it_began(health, clock):
    health.queued()
    clock.advance(10)
    started = clock.monotonic()
    clock.advance(5)
    health.queued()
    health.synced(started)
    clock.advance(59)
    assert health.live()
    clock.advance(1)
    assert not health.live()
    health.synced(clock.monotonic())
    assert health.live()


def test_a_node_on_its_way_out_is_alive_but_not_healthy(health):
    health.set_eligible(False)
    assert (health.healthy(), health.live()) == (False, True)
    health.set_eligible(True)
    assert health.healthy()


def test_the_documents(health, clock):
    health.synced()
    clock.advance(10)
    ok = health.healthz({})
    assert (ok.status, ok.content_type) == (200, "application/json")
    now = "2027-01-15T08:00:10Z"
    assert json.loads(ok.body) == {"lastUpdated": now, "currentTime": now, "nodeEligible": True}
    assert json.loads(health.livez({}).body) == {"lastUpdated": now, "currentTime": now}

    health.set_eligible(False)
    gone = health.healthz({})
    assert gone.status == 503
    assert json.loads(gone.body) == {"lastUpdated": now, "currentTime": now, "nodeEligible": False}
    assert health.livez({}).status == 200

    health.queued()
    clock.advance(60)
    late = health.livez({})
    assert late.status == 503
    assert json.loads(late.body) == {"lastUpdated": "2027-01-15T08:00:00Z", "currentTime": "2027-01-15T08:01:10Z"}


def test_a_proxy_that_never_synced_says_so(health, clock):
    health.queued()
    clock.advance(60)
    assert json.loads(health.livez({}).body)["lastUpdated"] == "0001-01-01T00:00:00Z"


def test_the_daemons_own_health_checks_count_too(health, clock):
    server = HealthServer("127.0.0.1", 0, CollectorRegistry())
    daemon = Daemon("x", clock=clock, health=server, environ={})
    daemon.add_report("/healthz", health.healthz)
    daemon.add_report("/livez", health.livez)
    daemon.add_health_check("loop", lambda: stuck)
    before = {code: metrics.value("kubeproxy_proxy_livez_total", code=code) or 0 for code in ("200", "503")}

    def get(path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    try:
        stuck = None
        status, document = get("/healthz")
        assert (status, document["nodeEligible"]) == (200, True)
        assert get("/livez")[0] == 200
        stuck = "stuck for 90 s"
        status, document = get("/livez")
        assert (status, document["failing"]) == (503, {"loop": "stuck for 90 s"})
    finally:
        server.close()
    assert metrics.value("kubeproxy_proxy_livez_total", code="200") == before["200"] + 1
    assert metrics.value("kubeproxy_proxy_livez_total", code="503") == before["503"] + 1


# --- metrics ---------------------------------------------------------------------------


def test_a_sync_is_said_of_each_family_it_wrote():
    def count(kind, family):
        name = f"kubeproxy_sync_{kind}proxy_rules_duration_seconds_count"
        return metrics.value(name, ip_family=family) or 0

    before = {(kind, family): count(kind, family) for kind in ("", "full_", "partial_") for family in ("IPv4", "IPv6")}
    proxymetrics.synced(["IPv4", "IPv6"], 0.02, 1000.0, full=True)
    proxymetrics.synced(["IPv4"], 0.01, 1001.0, full=False)
    grown = {key: count(*key) - old for key, old in before.items()}
    assert grown == {
        ("", "IPv4"): 2,
        ("", "IPv6"): 1,
        ("full_", "IPv4"): 1,
        ("full_", "IPv6"): 1,
        ("partial_", "IPv4"): 1,
        ("partial_", "IPv6"): 0,
    }
    assert metrics.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv4") == 1001
    assert metrics.value("kubeproxy_sync_proxy_rules_last_timestamp_seconds", ip_family="IPv6") == 1000


def test_changes_are_pending_until_a_sync_took_them():
    proxymetrics.pending(services=0, endpoints=0)
    seen = metrics.value("kubeproxy_sync_proxy_rules_endpoint_changes_total") or 0
    proxymetrics.changed(endpoints=3)
    proxymetrics.changed(services=1, endpoints=1)
    assert metrics.value("kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 4
    assert metrics.value("kubeproxy_sync_proxy_rules_service_changes_pending") == 1
    proxymetrics.pending(services=0, endpoints=0)
    assert metrics.value("kubeproxy_sync_proxy_rules_endpoint_changes_pending") == 0
    assert metrics.value("kubeproxy_sync_proxy_rules_endpoint_changes_total") == seen + 4


def test_when_a_change_happened():
    assert proxymetrics.trigger_time({proxymetrics.TRIGGER_TIME: "2027-01-15T08:00:00.25Z"}) == 1_800_000_000.25
    assert proxymetrics.trigger_time({proxymetrics.TRIGGER_TIME: "yesterday"}) is None
    assert proxymetrics.trigger_time({}) is None
    proxymetrics.programmed("IPv6", [90.0, 105.0], 100.0)
    name = "kubeproxy_network_programming_duration_seconds"
    assert metrics.value(f"{name}_bucket", ip_family="IPv6", le="10.0") == 1
    assert metrics.value(f"{name}_bucket", ip_family="IPv6", le="9.0") == 0
    assert metrics.value(f"{name}_count", ip_family="IPv6") == 1  # not the one from the future


def test_what_is_shown_parses_under_the_names_that_were_asked_for():
    proxymetrics.no_local_endpoints("IPv4", "external", 2)
    proxymetrics.failed(["IPv4"])
    proxymetrics.queued(["IPv4"], 5.0)
    shown = {s.name for f in text_string_to_metric_families(metrics.render().decode()) for s in f.samples}
    assert {
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "kubeproxy_sync_proxy_rules_nftables_sync_failures_total",
        "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
        "kubeproxy_sync_proxy_rules_endpoint_changes_total",
        "kubeproxy_sync_proxy_rules_service_changes_pending",
    } <= shown
