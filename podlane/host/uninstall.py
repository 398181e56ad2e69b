"""The plan that takes Podlane off a host. Pure.

Owns: the order. Invariants: pods end before the network they use goes; what cannot be
made again (the authority and keys, etcd's data and its snapshots) stays unless it is asked for; Docker,
its images, and what is not ours stay in any case. Such a plan goes on past what fails
(apply.finish), since there is nothing to go back to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from podlane.errors import PodlaneError
from podlane.host import firewall, layout
from podlane.host.dropins import USERS_FILE
from podlane.host.install import Record
from podlane.host.layout import (
    BACKUPS,
    COMMANDS,
    ETC,
    ETCD_DATA,
    OPT,
    ORDER,
    PKI,
    STATE,
    TARGET,
    TIMERS,
    UNITS,
    unit_name,
)
from podlane.host.steps import Command, Plan, Remove, Step, stages
from podlane.host.system import System
from podlane.host.units import ETCD_USER, SNAPSHOT

_LABEL = "podlane.io/pod-uid"
_BRIDGE, _HOST_PORTS = "podlane0", "podlane-hostports"
_TIMED = ("podlane-renew.service", SNAPSHOT)
"""Started by their timers."""

_FLANNEL = "/run/flannel"

_DROP_INS = (
    "/etc/modules-load.d/podlane.conf",
    "/etc/sysctl.d/90-podlane.conf",
    "/etc/profile.d/podlane.sh",
    "/etc/NetworkManager/conf.d/podlane.conf",
    USERS_FILE,
    *firewall.FILES,
)


@dataclass(frozen=True, slots=True)
class Present:
    """What of Podlane is on a host. `mounts` are below its state folder, the innermost first."""

    record: Record | None = None
    units: tuple[str, ...] = ()
    running: frozenset[str] = frozenset()
    containers: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    paths: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()
    """Of the folders that only --purge removes, those that are there."""


def look(system: System) -> Present:
    """Looking changes nothing; a Docker that does not answer has no pods to remove."""
    from podlane.host.install import decode

    found = system.look(layout.RECORD)
    units = [*(unit_name(each) for each in ORDER), TARGET, *TIMERS, *_TIMED]
    paths = (*(f"{UNITS}/{unit}" for unit in units), *_DROP_INS, OPT, ETC, STATE, _FLANNEL)
    return Present(
        record=decode(found.content) if found is not None else None,
        units=tuple(unit for unit in units if system.look(f"{UNITS}/{unit}") is not None),
        running=frozenset(unit for unit in units if _runs(system, unit)),
        containers=_containers(system),
        mounts=_mounts(system),
        paths=frozenset(path for path in paths if system.look(path) is not None),
        kept=frozenset(path for path in (PKI, ETCD_DATA, BACKUPS) if system.names(path)),
    )


def _runs(system: System, unit: str) -> bool:
    return system.run(["systemctl", "is-active", "--quiet", unit], timeout=30, check=False).returncode == 0


def _containers(system: System) -> tuple[str, ...]:
    try:
        listed = system.run(["docker", "ps", "-aq", "--filter", f"label={_LABEL}"], timeout=60, check=False)
    except PodlaneError:
        return ()
    return tuple(listed.stdout.split())


def _mounts(system: System) -> tuple[str, ...]:
    table = system.run(["cat", "/proc/self/mounts"], timeout=30, check=False).stdout
    points = [line.split()[1] for line in table.splitlines() if len(line.split()) > 1]
    return tuple(reversed([point for point in points if point.startswith(f"{STATE}/")]))


def plan(present: Present, *, purge: bool = False, keep_pods: bool = False) -> Plan:
    """Empty when there is nothing to remove."""
    stay = set() if purge else set(present.kept)
    if keep_pods and present.containers:
        stay |= {f"{STATE}/agent", *firewall.FILES}
    kept = [f"kept: {path}" for path in sorted(stay & present.kept)]
    return Plan(
        stages(
            [
                ("daemons", _stop(present)),
                ("pods", () if keep_pods else _remove_pods(present)),
                ("network", () if keep_pods else _network(present)),
                ("etcd", _stop_store(present)),
                ("units", _units(present)),
                ("files", _files(present, stay)),
                ("firewall", firewall.removal(present.paths - stay)),
            ]
        ),
        notes=(*kept, *(("remove them with --purge, or install again to go on with them",) if kept else ())),
    )


_STORE = (unit_name("join"), unit_name("scheduler"), unit_name("etcd"))


def _stop(present: Present) -> Iterator[Step]:
    """What makes pods and their network; the store is still there, for netd and proxyd say goodbye to it."""
    yield from (_stopping(unit) for unit in (*TIMERS, *map(unit_name, reversed(ORDER))) if _counts(unit, present, ()))
    yield from (_stopping(unit) for unit in _TIMED if unit in present.units)  # at work they are "activating"


def _counts(unit: str, present: Present, only: Iterable[str]) -> bool:
    chosen = unit in only if only else unit not in _STORE
    return chosen and unit in present.running


def _stopping(unit: str) -> Command:
    return Command(("systemctl", "stop", unit), timeout=150)


def _remove_pods(present: Present) -> Iterator[Step]:
    if present.containers:
        yield Command(("docker", "rm", "--force", "--volumes", *present.containers), timeout=600)
    yield from (Command(("umount", point), timeout=60) for point in present.mounts)


def _network(present: Present) -> Iterator[Step]:
    daemons = present.record.options.daemons if present.record is not None else ()
    if OPT not in present.paths or "netd" not in daemons:
        return
    yield Command((f"{COMMANDS}/proxyd", "uninstall"), timeout=120)
    yield Command((f"{COMMANDS}/netd", "uninstall"), timeout=120)
    yield Command(("ip", "link", "delete", _BRIDGE), timeout=30, may_fail=True)
    yield Command(("nft", "delete", "table", "inet", _HOST_PORTS), timeout=30, may_fail=True)


def _stop_store(present: Present) -> Iterator[Step]:
    yield from (_stopping(unit) for unit in (*_STORE, TARGET) if _counts(unit, present, (*_STORE, TARGET)))


def _units(present: Present) -> Iterator[Step]:
    if not present.units:
        return
    yield Command(("systemctl", "disable", "--quiet", *(each for each in present.units if each not in _TIMED)))
    yield from (Remove(f"{UNITS}/{unit}") for unit in present.units)
    yield Command(("systemctl", "daemon-reload"))
    # netd's, which outlives its unit for the sake of who reads subnet.env; perhaps somebody else has files in it
    if _FLANNEL in present.paths:
        yield Command(("rmdir", "--ignore-fail-on-non-empty", _FLANNEL), may_fail=True)


def _files(present: Present, stay: set[str]) -> Iterator[Step]:
    """Folders that hold something that stays are emptied around it."""
    yield from (Remove(path) for path in _DROP_INS if path in present.paths - stay)
    for folder in (OPT, ETC, STATE):
        if folder not in present.paths:
            continue
        inside = sorted(path for path in stay if path.startswith(f"{folder}/"))
        if not inside:
            yield Remove(folder)
        else:
            spared = [word for path in inside for word in ("!", "-path", path)]
            argv = ("find", folder, "-mindepth", "1", "-maxdepth", "1", *spared, "-exec", "rm", "-rf", "{}", "+")
            yield Command(argv)
    if ETCD_DATA not in stay and (USERS_FILE in present.paths or ETCD_DATA in present.kept):
        yield Command(("userdel", ETCD_USER), may_fail=True)
