"""What netd says of itself: the document behind `netd status` and /status.

Owns: its shape. Read from any thread; everything in it is replaced as a whole
by the thread that owns it, so a document may mix two moments but no half values.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from netd.desired import Underlay
from netd.model import Device
from podlane.runtime.clock import Clock
from podlane.runtime.runner import Runner

if TYPE_CHECKING:
    from netd.loop import Netd


class Report:
    """`document` is plain data; durations in seconds."""

    def __init__(self, netd: Netd, clock: Clock) -> None:
        self._netd = netd
        self._clock = clock
        self._started = clock.monotonic()

    def encode(self) -> bytes:
        return json.dumps(self.document()).encode()

    def document(self) -> dict[str, Any]:
        netd, now = self._netd, self._clock.monotonic()
        place, want = netd.place, netd.want
        waiting = {name: why for name, check in netd.ready_checks().items() if (why := check()) is not None}
        return {
            "pid": os.getpid(),
            "uptimeSeconds": round(now - self._started, 1),
            "ready": not waiting,
            "waiting": waiting,
            "lease": self._lease(now),
            "underlay": _underlay(place.underlay) if place is not None else None,
            "devices": [_device(device) for device in want.devices.values()] if want is not None else [],
            "peers": {
                "leases": len(netd.in_force),
                "programmed": netd.peers_programmed,
                "direct": sorted(map(str, netd.prober.direct)),
                "unreachable": list(netd.prober.unreachable().peers),
                "unreachableCount": netd.prober.unreachable().count,
                "skipped": netd.skipped,
                "undecodable": netd.mirror.undecodable,
            },
            "store": {
                "synced": netd.mirror.synced,
                "silentSeconds": _since(netd.mirror.last_contact, now),
            },
            "errors": {
                runner.name: str(runner.last_error)
                for runner in (netd.lease_runner, netd.kernel_runner, netd.firewall_runner)
                if _failed(runner)
            },
        }

    def _lease(self, now: float) -> dict[str, Any] | None:
        netd, place = self._netd, self._netd.place
        if place is None:
            return None
        tenancy = netd.holder.tenancy
        return {
            "subnets": [str(subnet) for subnet in place.own],
            "key": place.own.key,
            "held": tenancy is not None and not netd.lease_runner.last_error,
            "remembered": not place.confirmed,
            "reserved": tenancy is not None and tenancy.reserved,
            "ageSeconds": _since(netd.held_since, now),
            "expiresInSeconds": round(netd.holder.ttl_left) if tenancy is not None and not tenancy.reserved else None,
        }


def _failed(runner: Runner) -> bool:
    return runner.last_error is not None


def _since(then: float | None, now: float) -> float | None:
    return round(now - then, 1) if then else None


def _underlay(underlay: Underlay) -> dict[str, Any]:
    return {
        "interface": underlay.name,
        "mtu": underlay.mtu,
        "addresses": [str(each) for each in (underlay.v4, underlay.v6) if each is not None],
        "publicAddresses": [str(each) for each in (underlay.public_ip, underlay.public_ipv6) if each is not None],
    }


def _device(device: Device) -> dict[str, Any]:
    return {
        "name": device.name,
        "vni": device.vni,
        "port": device.port,
        "mtu": device.mtu,
        "mac": device.mac,
        "local": str(device.local),
        "addresses": sorted(map(str, device.addresses)),
    }
