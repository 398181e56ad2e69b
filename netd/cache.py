"""What netd remembers of the network, so that a restart without the store, or with another one, keeps it up.

Owns: `<state-dir>/network.json`. Invariants: a file that is missing, damaged or
of a later version costs only the memory, never the start; the file is there
whole or not at all; that it cannot be written costs nothing else.

Leases are kept as the JSON text of their values and decoded when somebody asks
for the first: 5,000 take 0.1 s, and a start that finds its store again never
asks. What was encoded once is not encoded again while the lease stays.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from netd.desired import Lease
from podlane.api.subnets import LeaseValue, Subnets
from podlane.errors import PodlaneError
from podlane.runtime.atomic import write_atomic
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger

FILE = "network.json"
VERSION = 1
INTERVAL = 10.0  # seconds between two writes
REFRESH = 3600.0  # seconds after which it is written for the sake of `saved` alone

_Raw = tuple[int, str]
"""A lease's age, and its value's JSON."""

_log = get_logger("netd.cache")


@dataclass(frozen=True, slots=True)
class Remembered:
    """The network as it was last known.

    config     the network config's JSON
    own        this host's subnets
    interface  the underlay's name
    devices    names of VXLAN devices netd has made and that may still be there
    witness    an etcd lease that proves the store to be the same one, 0 for none
    revision   a revision the store had reached: a lower one is a backup's
    leases     those in force, by the last part of their key
    kept       seconds for which leases in force that the store does not have may stay so (see keeping.py)
    saved      when that was so, in seconds since 1970
    """

    config: bytes
    own: Subnets
    interface: str
    devices: tuple[str, ...] = ()
    witness: int = 0
    revision: int = 0
    leases: Mapping[str, Lease] = field(default_factory=dict)
    kept: Mapping[str, float] = field(default_factory=dict)
    saved: float = 0.0


class NetworkCache:
    """Not thread-safe. `interval`: least seconds between two writes."""

    def __init__(self, folder: Path, *, clock: Clock | None = None, interval: float = INTERVAL) -> None:
        self._path = folder / FILE
        self._clock = clock or SystemClock()
        self._interval = interval
        self._not_before = -float("inf")
        self._failing = False
        self._memo: dict[str, tuple[Lease, _Raw]] = {}
        self._on_disk: dict[str, Any] = {}

    def load(self) -> Remembered | None:
        """What the file says; None when there is none that can be used."""
        try:
            found = json.loads(self._path.read_bytes())
            if not isinstance(found, dict) or found.get("version") != VERSION:
                version = found.get("version") if isinstance(found, dict) else found
                raise ValueError(f"expected version {VERSION}, got {version!r:.40}")
            content = _checked(found)
            remembered = _remembered(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            _log.warning("remembered network not usable", path=str(self._path), error=str(error))
            return None
        self._on_disk = content
        return remembered

    def save(self, remembered: Remembered, *, force: bool = False) -> float:
        """Write it down if it has changed, unless it is too soon; then returns in how many seconds to call again.

        `force` writes at once, and also when only `saved` or `revision` differ.
        """
        now = self._clock.monotonic()
        if not force and now < self._not_before:
            return self._not_before - now
        content = {
            "version": VERSION,
            "saved": remembered.saved,
            "config": remembered.config.decode(errors="surrogateescape"),
            "own": remembered.own.key,
            "interface": remembered.interface,
            "devices": list(remembered.devices),
            "witness": remembered.witness,
            "revision": remembered.revision,
            "kept": dict(remembered.kept),
            "leases": self._encoded(remembered.leases),
        }
        if not (content != self._on_disk if force else _worth_writing(content, self._on_disk)):
            return 0.0
        self._not_before = now + self._interval
        try:
            write_atomic(self._path, json.dumps(content, separators=(",", ":")))
        except PodlaneError as error:
            if not self._failing:
                _log.warning("network not remembered", error=str(error), retry_in=self._interval)
            self._failing = True
            return 0.0
        self._failing = False
        self._on_disk = content
        return 0.0

    def _encoded(self, leases: Mapping[str, Lease]) -> dict[str, _Raw]:
        if isinstance(leases, _StoredLeases):
            return leases.raw
        memo: dict[str, tuple[Lease, _Raw]] = {}
        for key, lease in leases.items():
            known = self._memo.get(key)
            if known is None or known[0] is not lease:
                known = (lease, (lease.age, lease.value.encode().decode()))
            memo[key] = known
        self._memo = memo
        return {key: raw for key, (_, raw) in memo.items()}


class _StoredLeases(Mapping[str, Lease]):
    """Leases decoded all at once when one is asked for; any that cannot be are left out."""

    def __init__(self, raw: dict[str, _Raw]) -> None:
        self.raw = raw
        self._leases: dict[str, Lease] | None = None

    def __getitem__(self, key: str) -> Lease:
        return self._decoded()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._decoded())

    def __len__(self) -> int:
        return len(self._decoded())

    def _decoded(self) -> dict[str, Lease]:
        if self._leases is None:
            leases: dict[str, Lease] = {}
            for key, (age, value) in self.raw.items():
                try:
                    leases[key] = Lease(key, Subnets.parse_key(key), LeaseValue.decode(value), age)
                except (ValueError, RecursionError) as error:
                    _log.warning("remembered lease left out", key=key, error=str(error))
            self._leases = leases
        return self._leases


def _worth_writing(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether more than time has passed."""
    if not old or not 0 <= new["saved"] - old["saved"] < REFRESH:
        return True
    passing = ("saved", "revision", "kept")
    return new["kept"].keys() != old["kept"].keys() or any(
        new[name] != old[name] for name in new if name not in passing
    )


_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "saved": (int, float),
    "config": str,
    "own": str,
    "interface": str,
    "devices": list,
    "witness": int,
    "revision": int,
    "kept": dict,
    "leases": dict,
}


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """The content with leases as tuples. Raises ValueError when anything is not what `save` writes."""
    for name, kind in _KINDS.items():
        if not isinstance(found.get(name), kind):
            raise ValueError(f"{name}: got {found.get(name)!r:.40}")
    if not 0 <= found["saved"] < float("inf"):
        raise ValueError(f"saved: got {found['saved']}")
    if not all(isinstance(device, str) for device in found["devices"]):
        raise ValueError(f"devices: got {found['devices']!r:.40}")
    if not all(isinstance(left, int | float) and 0 <= left < float("inf") for left in found["kept"].values()):
        raise ValueError(f"kept: got {found['kept']!r:.40}")
    leases: dict[str, _Raw] = {}
    for key, raw in found["leases"].items():
        if not (isinstance(raw, list) and len(raw) == 2 and isinstance(raw[0], int) and isinstance(raw[1], str)):
            raise ValueError(f"leases: {key}: got {raw!r:.40}")
        leases[key] = (raw[0], raw[1])
    return {**found, "leases": leases}


def _remembered(content: Mapping[str, Any]) -> Remembered:
    return Remembered(
        config=content["config"].encode(errors="surrogateescape"),
        own=Subnets.parse_key(content["own"]),
        interface=content["interface"],
        devices=tuple(content["devices"]),
        witness=content["witness"],
        revision=content["revision"],
        leases=_StoredLeases(content["leases"]),
        kept=content["kept"],
        saved=content["saved"],
    )
