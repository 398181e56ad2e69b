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

from netd.identity import running
from netd.kernel import Kernel, LinuxKernel
from netd.plan import Refused
from netd.seen import Seen, ask_daemon, look
from netd.settings import HostSettings
from podlane.api.subnets import Address, Subnets
from podlane.errors import PodlaneError
from podlane.runtime.text import human_duration, table
from podlane.store.config import StoreConfig, connect, resolve
from podlane.store.interface import Store

_SHOWN = 10

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
    daemon = ask_daemon(settings)
    found: dict[str, Any] = {"ok": False, "netd": _process(daemon, settings, folder), "daemon": daemon, "errors": []}
    try:
        with opened(settings, folder, store_config) as sources:
            seen = look(*sources)
    except PodlaneError as error:
        found["errors"].append(str(error))
        return found
    found["errors"] += filter(None, (seen.store_error, seen.remark))
    found |= _kernel_status(seen)
    found["ok"] = daemon is not None and daemon["ready"] and not found["drift"] and not found["errors"]
    return found


def _process(daemon: Mapping[str, Any] | None, settings: HostSettings, folder: Path) -> dict[str, Any]:
    """Which process it is, where its state is, and where it answers."""
    port = settings.healthz_port
    return {
        "pid": daemon["pid"] if daemon is not None else running(folder) or None,
        "stateDir": str(folder),
        "stateDirExists": folder.is_dir(),
        "health": f"{settings.healthz_ip}:{port}" if port else None,
    }


def _kernel_status(seen: Seen) -> dict[str, Any]:
    known = seen.stored.leases
    own = known.get(seen.own.key)
    addresses = own.value.addresses if own is not None else ()
    held = any(map(seen.underlay.is_public, addresses))
    unknown = bool(seen.store_error)
    try:
        drift = [str(step) for step in seen.plan().steps]
    except Refused as refused:
        drift = [str(refused)]
    return {
        "subnets": [str(subnet) for subnet in seen.own],
        "lease": {
            "stored": None if unknown else held,
            "reserved": None if unknown else held and not seen.stored.etcd_lease(seen.own.key),
            "publicAddresses": [str(a) for a in addresses],
        },
        "interface": seen.underlay.name,
        "devices": [
            {"name": d.name, "mtu": d.mtu, "mac": d.mac, "up": d.up, "local": str(d.local), "port": d.port}
            for d in seen.actual.devices.values()
        ],
        "leases": len(known),
        "others": sum(lease.subnets != seen.own for lease in seen.hosts),
        "peers": sum(all(subnet in seen.desired.routes for subnet in lease.subnets) for lease in seen.hosts),
        "skipped": dict(seen.desired.problems),
        "undecodable": dict(seen.stored.undecodable),
        "drift": drift,
    }


def render_status(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = [("Netd", _process_text(found)), *_daemon_lines(found["daemon"])]
    if "subnets" in found:
        lines += _lease_lines(found)
        lines += [
            ("Device", f"{d['name']}, mtu {d['mtu']}, mac {d['mac']}, {'up' if d['up'] else 'DOWN'}")
            for d in found["devices"]
        ]
        lines.append(("Peers", _peers_text(found)))
        lines += [("Left out", f"lease {spelled(key)}: {why}") for key, why in sorted(found["skipped"].items())]
        lines += [("Left out", f"{key}: {why}") for key, why in sorted(found["undecodable"].items())]
        drift = found["drift"]
        lines.append(("Drift", f"{len(drift)} changes needed" if drift else "none"))
        lines += [("", step) for step in drift[:_SHOWN]]
        lines += [("", f"and {len(drift) - _SHOWN} more: netd plan")] if len(drift) > _SHOWN else []
    lines += [("Error", error) for error in found["errors"]]
    return table([[f"{name}:" if name else "", text] for name, text in lines])


def _process_text(found: Mapping[str, Any]) -> str:
    process, daemon = found["netd"], found["daemon"]
    if daemon is not None:
        state = "ready" if daemon["ready"] else "NOT READY"
        return f"{state}, pid {daemon['pid']}, up {human_duration(daemon['uptimeSeconds'])}"
    if process["pid"] is not None:
        where = f"does not answer on {process['health']}" if process["health"] else "has no health port to ask"
        return f"runs, pid {process['pid']}, but {where}"
    never = "" if process["stateDirExists"] else f", and never did with state directory {process['stateDir']}"
    return f"NOT RUNNING{never}"


def _daemon_lines(daemon: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if daemon is None:
        return []
    lines = [("" if i else "Waits for", f"{name}: {why}") for i, (name, why) in enumerate(daemon["waiting"].items())]
    lines += [("Error", text) for text in daemon["errors"].values() if text not in daemon["waiting"].values()]
    silent = daemon["store"]["silentSeconds"]
    heard = "no word from it since the start" if silent is None else f"last word {human_duration(silent)} ago"
    lines.append(("Etcd", heard))
    return lines


def _lease_lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    lease, daemon = found["lease"], found["daemon"]
    parts, addresses = [", ".join(found["subnets"])], ", ".join(lease["publicAddresses"])
    if lease["stored"] is False and addresses:
        return [("Lease", f"{parts[0]}, but in etcd it is that of {addresses}")]
    if addresses:
        parts.append(f"for {addresses} on {found['interface']}")
    if lease["reserved"]:
        parts.append("reserved")
    elif lease["stored"] is None:
        parts.append("as remembered")
    elif not lease["stored"]:
        parts.append("NOT in etcd")
    theirs = daemon["lease"] if daemon is not None else None
    if theirs is not None and theirs["ageSeconds"] is not None:
        parts.append(f"held for {human_duration(theirs['ageSeconds'])}")
    if theirs is not None and theirs["expiresInSeconds"] is not None:
        parts.append(f"good for {human_duration(theirs['expiresInSeconds'])} without renewal")
    return [("Lease", ", ".join(parts))]


def _peers_text(found: Mapping[str, Any]) -> str:
    text = f"{found['peers']} of {found['others']} other hosts"
    daemon = found["daemon"]
    if daemon is None:
        return text
    peers = daemon["peers"]
    if peers["direct"]:
        text += f", {len(peers['direct'])} routed directly"
    if silent := peers["unreachable"]:
        more = peers["unreachableCount"] - len(silent)
        text += f", no answer from {', '.join(map(spelled, silent))}" + (f" and {more} more" if more else "")
    return text


def spelled(key: str) -> str:
    """The subnets of a lease's key as people write them: `10.5.34.0/24`, `10.5.34.0/24 with fd00:12:13::/64`."""
    return " with ".join(map(str, Subnets.parse_key(key)))
