"""Metrics by kube-proxy's names, so that its dashboards and alerts read proxyd.

Owns: the metrics whose meaning is kube-proxy's own, with its labels and buckets
(as of 1.34), and the calls that fill them. Invariant: a name is here only if
what it says is true of proxyd; what is proxyd's alone is called
podlane_proxyd_*. One sync writes both families' tables, so what is measured of
it is said of each family that it wrote.

Left out, and why: the iptables ones; cleanup failures (proxyd has nothing to
clean up after a sync); the conntrack reconciler's duration (one pass looks at
both families).
Source: kube-proxy's pkg/proxy/metrics/metrics.go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from itertools import chain
from typing import Literal

from podlane.api.types import IPFamily
from podlane.runtime import metrics

TRIGGER_TIME = "endpoints.kubernetes.io/last-change-trigger-time"
"""The annotation of an EndpointSlice that says when what it tells of happened, in RFC 3339."""

_SYNC_SECONDS = tuple(0.001 * 2**n for n in range(15))
_PROGRAMMING_SECONDS = (0.25, 0.5, *map(float, chain(range(1, 60), range(60, 120, 5), range(120, 301, 30))))
_FAMILY = ["ip_family"]

_SYNC = metrics.histogram(
    "kubeproxy_sync_proxy_rules_duration_seconds", "Time of one sync.", _FAMILY, buckets=_SYNC_SECONDS
)
_FULL = metrics.histogram(
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "Time of one sync that compared the whole table.",
    _FAMILY,
    buckets=_SYNC_SECONDS,
)
_PARTIAL = metrics.histogram(
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "Time of one sync that wrote only what had changed.",
    _FAMILY,
    buckets=_SYNC_SECONDS,
)
_PROGRAMMING = metrics.histogram(
    "kubeproxy_network_programming_duration_seconds",
    "Time from a change of a pod or service to the sync that brought it into the kernel.",
    _FAMILY,
    buckets=_PROGRAMMING_SECONDS,
)
_LAST = metrics.gauge(
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When a sync last succeeded, in Unix time.", _FAMILY
)
_LAST_QUEUED = metrics.gauge(
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When a sync was last asked for, in Unix time.", _FAMILY
)
_FAILURES = metrics.counter("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "Syncs that failed.", _FAMILY)
_ENDPOINT_CHANGES = metrics.counter(
    "kubeproxy_sync_proxy_rules_endpoint_changes_total", "Changes of endpoint slices seen."
)
_ENDPOINTS_PENDING = metrics.gauge(
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending", "Changed endpoint slices not in the kernel yet."
)
_SERVICE_CHANGES = metrics.counter("kubeproxy_sync_proxy_rules_service_changes_total", "Changes of services seen.")
_SERVICES_PENDING = metrics.gauge(
    "kubeproxy_sync_proxy_rules_service_changes_pending", "Changed services not in the kernel yet."
)
_NO_LOCAL = metrics.gauge(
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "Services with a Local traffic policy that have endpoints, but none on this node.",
    ["ip_family", "traffic_policy"],
)
_CONNTRACK_DELETED = metrics.counter(
    "kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale conntrack entries deleted.", _FAMILY
)
_HEALTHZ = metrics.counter("kubeproxy_proxy_healthz_total", "Answers of /healthz by status.", ["code"])
_LIVEZ = metrics.counter("kubeproxy_proxy_livez_total", "Answers of /livez by status.", ["code"])


def queued(families: Iterable[IPFamily], now: float) -> None:
    """Say that a sync was asked for. `now` in Unix time."""
    for family in families:
        _LAST_QUEUED.labels(family).set(now)


def changed(*, services: int = 0, endpoints: int = 0) -> None:
    """So many objects changed in the store; they are pending until `taken`."""
    for number, total, pending in (
        (services, _SERVICE_CHANGES, _SERVICES_PENDING),
        (endpoints, _ENDPOINT_CHANGES, _ENDPOINTS_PENDING),
    ):
        total.inc(number)
        pending.inc(number)


def pending(*, services: int, endpoints: int) -> None:
    """So many changed objects are not in the kernel now: 0 and 0 after a sync that took all."""
    _SERVICES_PENDING.set(services)
    _ENDPOINTS_PENDING.set(endpoints)


def synced(families: Iterable[IPFamily], seconds: float, now: float, *, full: bool) -> None:
    """Say that a sync succeeded. `full`: it compared the whole table. `now` in Unix time."""
    for family in families:
        _SYNC.labels(family).observe(seconds)
        (_FULL if full else _PARTIAL).labels(family).observe(seconds)
        _LAST.labels(family).set(now)


def failed(families: Iterable[IPFamily]) -> None:
    """Say that a sync failed, and how many: once a sync."""
    for family in families:
        _FAILURES.labels(family).inc()


def programmed(family: IPFamily, happened: Iterable[float], now: float) -> None:
    """Observe that changes which happened at these moments are in the kernel now. All in Unix time."""
    for moment in happened:
        # another machine's clock: what comes from the future says nothing
        if moment <= now:
            _PROGRAMMING.labels(family).observe(now - moment)


def no_local_endpoints(family: IPFamily, traffic_policy: Literal["internal", "external"], services: int) -> None:
    _NO_LOCAL.labels(family, traffic_policy).set(services)


def conntrack_deleted(family: IPFamily, entries: int) -> None:
    _CONNTRACK_DELETED.labels(family).inc(entries)


def answered(path: Literal["/healthz", "/livez"], code: int) -> None:
    (_HEALTHZ if path == "/healthz" else _LIVEZ).labels(str(code)).inc()


def trigger_time(annotations: Mapping[str, str]) -> float | None:
    """Read when the change a slice tells of happened, in Unix time; None when it does not say."""
    try:
        moment = datetime.fromisoformat(annotations[TRIGGER_TIME])
    except (KeyError, ValueError):
        return None
    return None if moment.tzinfo is None else moment.timestamp()
