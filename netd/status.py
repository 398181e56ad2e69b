"""`netd status`: one look at a host, as data and as text.

Owns: what counts as well (netd answers and is ready, the kernel is as it
should be) and the form for people. Whatever part cannot be had is named, and
the others are shown all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from netd.kernel import Kernel, LinuxKernel
from netd.plan import Refused, plan
from netd.seen import Seen, ask_daemon, look
from netd.settings import HostSettings
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime.text import human_duration, table
from podlane.store.config import StoreConfig, connect, resolve
from podlane.store.interface import Store

Sources = tuple[Store, Kernel, HostSettings, Path, Callable[[], Sequence[Address]]]
"""The arguments of `look`."""


@contextmanager
def opened(settings: HostSettings, folder: Path, store_config: StoreConfig) -> Iterator[Sources]:
    store = connect(store_config)
    try:
        yield store, LinuxKernel(), settings, folder, lambda: resolve(store_config)
    finally:
        store.close()


def host_status(settings: HostSettings, folder: Path, store_config: StoreConfig) -> dict[str, Any]:
    """Everything there is to say of this host; `ok` sums it up."""
    found: dict[str, Any] = {"ok": False, "daemon": ask_daemon(settings), "errors": []}
    try:
        with opened(settings, folder, store_config) as sources:
            seen = look(*sources)
    except PodlaneError as error:
        found["errors"].append(str(error))
        return found
    if seen.store_error:
        found["errors"].append(seen.store_error)
    found |= _kernel_status(seen)
    daemon = found["daemon"]
    found["ok"] = daemon is not None and daemon["ready"] and not found["drift"] and not found["errors"]
    return found


def _kernel_status(seen: Seen) -> dict[str, Any]:
    own = seen.stored.leases.get(seen.own.key)
    try:
        drift = [str(step) for step in plan(seen.desired, seen.actual).steps]
    except Refused as refused:
        drift = [str(refused)]
    return {
        "subnets": [str(subnet) for subnet in seen.own],
        "lease": {
            "stored": own is not None,
            "reserved": own is not None and not seen.stored.etcd_lease(seen.own.key) and not seen.store_error,
            "publicAddresses": [str(a) for a in own.value.addresses] if own is not None else [],
        },
        "interface": seen.underlay.name,
        "devices": [
            {"name": d.name, "mtu": d.mtu, "mac": d.mac, "up": d.up, "local": str(d.local), "port": d.port}
            for d in seen.actual.devices.values()
        ],
        "leases": len(seen.stored.leases),
        "peers": len({route.gateway for route in seen.desired.routes.values()}),
        "skipped": dict(seen.desired.problems),
        "undecodable": dict(seen.stored.undecodable),
        "drift": drift,
    }


def render_status(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = [*_daemon_lines(found["daemon"])]
    if "subnets" in found:
        lines += _lease_lines(found)
        lines += [
            ("Device", f"{d['name']}, mtu {d['mtu']}, mac {d['mac']}, {'up' if d['up'] else 'DOWN'}")
            for d in found["devices"]
        ]
        lines.append(("Peers", _peers_text(found)))
        lines += [("Left out", f"lease {key}: {why}") for key, why in sorted(found["skipped"].items())]
        lines += [("Left out", f"{key}: {why}") for key, why in sorted(found["undecodable"].items())]
        drift = found["drift"]
        lines.append(("Drift", f"{len(drift)} changes needed" if drift else "none"))
        lines += [("", step) for step in drift[:10]]
    lines += [("Error", error) for error in found["errors"]]
    return table([[f"{name}:" if name else "", text] for name, text in lines])


def _daemon_lines(daemon: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if daemon is None:
        return [("Netd", "does not answer (not running, or without a health port)")]
    state = "ready" if daemon["ready"] else "not ready"
    lines = [("Netd", f"{state}, pid {daemon['pid']}, up {human_duration(daemon['uptimeSeconds'])}")]
    lines += [("", f"{name}: {why}") for name, why in daemon["waiting"].items()]
    lines += [("Error", text) for text in daemon["errors"].values() if text not in daemon["waiting"].values()]
    silent = daemon["store"]["silentSeconds"]
    lines.append(("Store", "never heard of" if silent is None else f"last heard of {human_duration(silent)} ago"))
    return lines


def _lease_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    lease, daemon = found["lease"], found["daemon"]
    parts = [", ".join(found["subnets"])]
    if lease["publicAddresses"]:
        parts.append(f"for {', '.join(lease['publicAddresses'])} on {found['interface']}")
    if lease["reserved"]:
        parts.append("reserved")
    elif not lease["stored"]:
        parts.append("NOT in the store")
    theirs = daemon["lease"] if daemon is not None else None
    if theirs is not None and theirs["ageSeconds"] is not None:
        parts.append(f"held for {human_duration(theirs['ageSeconds'])}")
    if theirs is not None and theirs["expiresInSeconds"] is not None:
        parts.append(f"good for {human_duration(theirs['expiresInSeconds'])} without renewal")
    return [("Lease", ", ".join(parts))]


def _peers_text(found: Mapping[str, Any]) -> str:
    text = f"{found['peers']} of {max(found['leases'] - 1, 0)} other leases"
    daemon = found["daemon"]
    if daemon is None:
        return text
    peers = daemon["peers"]
    if peers["direct"]:
        text += f", {len(peers['direct'])} routed directly"
    if peers["unreachable"]:
        text += f", no answer from {', '.join(peers['unreachable'])}"
    return text
