"""The plan that makes a host what its operator asked for. Pure.

Owns: the order. Invariants: nothing that runs is touched before everything new is
in place beside it (version, keys, files); daemons are restarted one by one, and
only those of which something changed; the same options again give an empty
plan. An upgrade is this plan with another bundle and the options of the record.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from podlane.host import firewall, layout
from podlane.host.dropins import MODULES, SYSCTL_FILE, USERS_FILE, drop_ins, wrappers
from podlane.host.emptylist import EMPTY_LIST
from podlane.host.keystate import KeyState, judge
from podlane.host.layout import (
    BACKUPS,
    CLUSTER_ENVIRONMENT,
    CURRENT,
    ETC,
    ETCD_DATA,
    ORDER,
    PKI,
    RENEW_TIMER,
    SNAPSHOT_TIMER,
    TARGET,
    TIMERS,
    UNITS,
    VERSIONS,
    Daemon,
    unit_name,
)
from podlane.host.machine import Bundle, Machine
from podlane.host.options import InstallOptions
from podlane.host.settings import key_files, settings
from podlane.host.steps import Command, File, Folder, Link, Plan, Remove, Start, Step, stages
from podlane.host.system import Found, System
from podlane.host.units import ETCD_USER, SNAPSHOT, daemon_unit, renew_units, snapshot_units, target_unit

KEPT_VERSIONS = 2
_COMPLETE = ".podlane-complete"
PROGRAMS = {
    "podlane": "podlane.cli.main",
    "netd": "netd.cli",
    "proxyd": "proxyd.cli",
    "scheduler": "scheduler.cli",
}
"""As in pyproject.toml."""


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of layout.RECORD. `version` is the name of its folder."""

    version: str
    name: str
    addresses: tuple[str, ...]
    options: InstallOptions


@dataclass(frozen=True, slots=True)
class Actual:
    """What is there already. `found` has every path that a plan may write; `running` are active units."""

    found: Mapping[str, Found] = field(default_factory=dict)
    running: frozenset[str] = frozenset()
    enabled: frozenset[str] = frozenset()
    versions: tuple[str, ...] = ()
    keys: frozenset[str] = frozenset()
    key_state: KeyState = field(default_factory=KeyState)
    etcd_data: bool = False

    @property
    def record(self) -> Record | None:
        found = self.found.get(layout.RECORD)
        return decode(found.content) if found is not None else None


def encode(record: Record) -> str:
    return msgspec.json.format(msgspec.json.encode(record), indent=2).decode() + "\n"


def decode(content: bytes) -> Record | None:
    """None for what no version of this program wrote."""
    try:
        return msgspec.json.decode(content, type=Record)
    except msgspec.DecodeError:
        return None


def files(options: InstallOptions, machine: Machine, bundle: Bundle) -> list[File]:
    """Every file that the host shall have, but those of the version and the keys."""
    etcd = f"{CURRENT}/bin/etcd" if bundle.with_etcd else machine.etcd
    units = {
        f"{UNITS}/{unit_name(each)}": daemon_unit(each, etcd_program=etcd, tls=options.tls) for each in options.daemons
    }
    units[f"{UNITS}/{TARGET}"] = target_unit()
    if renews(options):
        units |= renew_units()
    if options.own_etcd:
        units |= snapshot_units()
    record = Record(bundle.name, machine.name, machine.addresses, options)
    return [
        *drop_ins(network_manager=machine.network_manager, own_etcd=options.own_etcd),
        *wrappers(),
        *settings(options, machine),
        *firewall.files(options, machine.zone),
        *(File(path, text) for path, text in units.items()),
        File(layout.RECORD, encode(record)),
    ]


def renews(options: InstallOptions) -> bool:
    """Whether there is somebody who renews this host's certificates: the authority here, or the join service."""
    return options.founds or bool(options.join)


def timers(options: InstallOptions) -> tuple[str, ...]:
    wanted = {RENEW_TIMER: renews(options), SNAPSHOT_TIMER: options.own_etcd}
    return tuple(each for each in TIMERS if wanted[each])


def look(system: System, wanted: Iterable[File]) -> Actual:
    """What is there of a plan's paths."""
    paths = [*(each.path for each in wanted), CURRENT, layout.RECORD, CLUSTER_ENVIRONMENT, layout.REVOCATION_LIST]
    found = {path: there for path in paths if (there := system.look(path)) is not None}
    units = [*(unit_name(each) for each in ORDER), TARGET, *TIMERS]
    versions = [name for name in system.names(VERSIONS) if system.look(f"{VERSIONS}/{name}/{_COMPLETE}") is not None]
    return Actual(
        found=found,
        running=frozenset(unit for unit in units if _says(system, "is-active", unit)),
        enabled=frozenset(unit for unit in units if _says(system, "is-enabled", unit)),
        versions=tuple(versions),
        keys=frozenset(system.names(PKI)),
        etcd_data=bool(system.names(ETCD_DATA)),
    )


def look_at_keys(system: System, options: InstallOptions, now: datetime, token: str = "") -> KeyState:
    """Whether those that are there are good. Raises UsageError for what is no token."""
    there = {name: found.content for name in key_files(options) if (found := system.look(f"{PKI}/{name}")) is not None}
    return judge(there, now, token=token, ours=not options.etcd)


def _says(system: System, question: str, unit: str) -> bool:
    return system.run(["systemctl", question, "--quiet", unit], timeout=30, check=False).returncode == 0


def plan(options: InstallOptions, machine: Machine, bundle: Bundle, actual: Actual, *, token: str = "") -> Plan:
    """`token` is the join token; it is handed over on standard input and shown nowhere.

    Where etcd is was told once: members that came since are in those files, and stay there.
    """
    wanted = files(options, machine, bundle)
    grown = () if options.etcd else (CLUSTER_ENVIRONMENT, layout.CONFIG)
    changed = [
        each
        for each in wanted
        if not _is_there(each, actual) and not (each.path in grown and each.path in actual.found)
    ]
    folder = layout.version_folder(bundle.name)
    program = f"{folder}/bin/podlane"
    switched = _link_target(actual) != f"versions/{bundle.name}"
    touched = _touched(options, bundle, changed, actual, switched=switched)
    complete = set(key_files(options)) <= actual.keys and (not options.join or CLUSTER_ENVIRONMENT in actual.found)
    keyed = complete and not actual.key_state.faults
    first = actual.record is None
    return Plan(
        stages(
            [
                ("version", _version(folder, bundle) if bundle.name not in actual.versions else ()),
                ("revoked", _revoked(options, actual)),
                ("keys", () if keyed else _keys(program, options, machine, token)),
                ("settings", _settle(changed, options, machine, first=first)),
                ("firewall", firewall.steps(changed)),
                ("units", _units(options, machine, bundle, changed, actual, switched=switched)),
                *_daemons(program, options, machine, touched, actual, enrol=first or not keyed),
                ("record", _record(changed, machine)),
                ("old versions", _prune(bundle.name, actual) if changed or switched else ()),
            ]
        ),
        notes=firewall.notes(options, machine.zone) if machine.zone and not options.firewalld else (),
    )


def _is_there(wanted: File, actual: Actual) -> bool:
    found = actual.found.get(wanted.path)
    return found is not None and found.content == wanted.content.encode() and found.mode == wanted.mode


def _link_target(actual: Actual) -> str:
    found = actual.found.get(CURRENT)
    return found.target if found is not None else ""


def _touched(
    options: InstallOptions, bundle: Bundle, changed: Iterable[File], actual: Actual, *, switched: bool
) -> list[Daemon]:
    """Which daemons must be started or restarted, in order."""
    paths = {each.path for each in changed}

    def touched(daemon: Daemon) -> bool:
        if switched and (daemon != "etcd" or bundle.with_etcd):
            return True
        if actual.key_state.faults:
            return True
        own = {f"{UNITS}/{unit_name(daemon)}", layout.environment_file(daemon)}
        shared = {CLUSTER_ENVIRONMENT} if daemon != "etcd" else set()
        return unit_name(daemon) not in actual.running or bool(paths & (own | shared))

    return [each for each in options.daemons if touched(each)]


def _version(folder: str, bundle: Bundle) -> Iterator[Step]:
    yield Folder(layout.OPT)
    yield Folder(VERSIONS)
    # what an interrupted run left is not gone on with
    yield Command(("rm", "-rf", folder))
    yield Command(("mkdir", "-m", "0755", folder), makes=(folder,))
    python = bundle.python
    if bundle.with_python:
        yield Command(("cp", "-a", f"{bundle.folder}/python", f"{folder}/python"))
        python = f"{folder}/python/bin/python3"
    yield Command((python, "-m", "venv", "--without-pip", folder))
    packages = f"{folder}/lib/python{bundle.abi}/site-packages"
    yield Command(("cp", "-a", f"{bundle.folder}/site/.", f"{packages}/"))
    if not bundle.compiled:
        mode = ("--invalidation-mode", "unchecked-hash")
        # the daemons may not write there, and would compile everything at every start
        yield Command((f"{folder}/bin/python", "-m", "compileall", "-q", *mode, packages), may_fail=True)
    yield from (_program(folder, name, module) for name, module in PROGRAMS.items())
    if bundle.with_etcd:
        for name in ("etcd", "etcdctl"):
            yield Command(("install", "-m", "0755", f"{bundle.folder}/bin/{name}", f"{folder}/bin/{name}"))
    yield File(f"{folder}/{_COMPLETE}", f"{bundle.version} {bundle.digest}\n")


def _program(folder: str, name: str, module: str) -> File:
    return File(f"{folder}/bin/{name}", f"#!{folder}/bin/python\nfrom {module} import main\n\nmain()\n", 0o755)


def _revoked(options: InstallOptions, actual: Actual) -> Iterator[Step]:
    """Etcd answers nobody without it. What is there came from the authority, and stays."""
    if options.own_etcd and layout.REVOCATION_LIST not in actual.found:
        yield Folder(layout.STATE)
        yield Folder(layout.REVOKED)
        yield File(layout.REVOCATION_LIST, EMPTY_LIST)


def _keys(program: str, options: InstallOptions, machine: Machine, token: str) -> Iterator[Step]:
    yield Folder(ETC)
    yield Folder(PKI, 0o700)
    if options.has_authority:
        yield Folder(f"{PKI}/issued", 0o700)  # the join service may write there, and only there
    if not options.tls:
        return
    who = ("--role", options.role, "--name", machine.name, "--address", ",".join(machine.addresses))
    if options.join:
        argv = (program, "host", "join", "--server", options.join, *who)
        # a token is good for one host and once: what it brought stays
        made = (PKI, CLUSTER_ENVIRONMENT)
        yield Command(argv, stdin=token, makes=made, lasts=made)
    elif options.founds:
        yield Command((program, "host", "keys", *who), makes=(PKI,))
    else:
        given = ("--cert-dir", options.cert_dir) if options.cert_dir else ("--cert", options.cert, "--key", options.key)
        yield Command((program, "host", "keys", *who, "--ca", options.ca, *given), makes=(PKI,))


def _settle(changed: Iterable[File], options: InstallOptions, machine: Machine, *, first: bool) -> Iterator[Step]:
    """What the units stand on: files outside systemd's folder, and what brings them into effect."""
    elsewhere = (layout.RECORD, *firewall.FILES)
    chosen = [each for each in changed if not each.path.startswith(UNITS) and each.path not in elsewhere]
    paths = {each.path for each in chosen}
    if first:
        yield Folder(layout.STATE)
        if options.own_etcd:
            yield Folder(ETCD_DATA, 0o700)  # systemd gives it to etcd's user
    yield from chosen
    if chosen:
        # in some policies what a service makes in /etc is not what confined programs such as systemd-sysusers may read
        yield from _relabel(machine, *sorted(paths))
    if USERS_FILE in paths:
        yield Command(("systemd-sysusers", USERS_FILE), undo=(("userdel", ETCD_USER),))
    if "/etc/modules-load.d/podlane.conf" in paths:
        yield from (Command(("modprobe", "-q", module), may_fail=True) for module in MODULES)  # some are built in
    if SYSCTL_FILE in paths:
        yield Command(("sysctl", "-q", "-e", "-p", SYSCTL_FILE), may_fail=True)
    if "/etc/NetworkManager/conf.d/podlane.conf" in paths:
        yield Command(("systemctl", "try-reload-or-restart", "NetworkManager.service"), may_fail=True)


def _units(
    options: InstallOptions,
    machine: Machine,
    bundle: Bundle,
    changed: Iterable[File],
    actual: Actual,
    *,
    switched: bool,
) -> Iterator[Step]:
    units = [each for each in changed if each.path.startswith(UNITS)]
    yield from units
    if any(each.path.endswith(SNAPSHOT_TIMER) for each in units):
        yield Folder(BACKUPS, 0o700)
    if switched:
        yield Link(CURRENT, f"versions/{bundle.name}")
    if switched or units:
        yield from _labels(machine, bundle, units)
    if units:
        yield Command(("systemctl", "daemon-reload"))
    names = [*(unit_name(each) for each in options.daemons), TARGET, *timers(options)]
    if new := [each for each in names if each not in actual.enabled]:
        yield Command(("systemctl", "enable", "--quiet", *new), undo=(("systemctl", "disable", "--quiet", *new),))


def _record(changed: Iterable[File], machine: Machine) -> Iterator[Step]:
    for each in changed:
        if each.path == layout.RECORD:
            yield each
            yield from _relabel(machine, each.path)


def _relabel(machine: Machine, *words: str) -> Iterator[Step]:
    """Label paths as SELinux's policy has it."""
    if machine.labels:
        yield Command((machine.restorecon, *words))


def _labels(machine: Machine, bundle: Bundle, units: Iterable[File]) -> Iterator[Step]:
    """What was unpacked elsewhere has labels from there; the policy knows /opt/…/bin and /etc."""
    yield from _relabel(machine, "-R", layout.OPT, ETC, *(each.path for each in units))
    if machine.labels and machine.opt_is_link:
        # most policies know /var/opt as data, and systemd starts no data
        folder = layout.version_folder(bundle.name)
        programs = (layout.COMMANDS, f"{folder}/bin", *([f"{folder}/python/bin"] if bundle.with_python else []))
        yield Command(("chcon", "-R", "-t", "bin_t", *programs))


def _daemons(
    program: str, options: InstallOptions, machine: Machine, daemons: Iterable[Daemon], actual: Actual, *, enrol: bool
) -> Iterator[tuple[str, Iterable[Step]]]:
    """A server's store first, then what it must hold, then everything that asks for it."""
    todo = list(daemons)

    def start(daemon: Daemon) -> Start:
        unit = unit_name(daemon)
        # the command on the PATH, for it knows the daemon's settings
        undo = ((f"{layout.COMMANDS}/{daemon}", "uninstall"),) if daemon in ("netd", "proxyd") else ()
        return Start(unit, restart=unit in actual.running, undo=undo)

    if "etcd" in todo:
        yield "etcd", (start("etcd"),)
        todo.remove("etcd")
    if options.founds and enrol:
        yield "cluster", _found_cluster(program, options, machine)
    for daemon in todo:
        yield daemon, (start(daemon),)
    extra = [each for each in (TARGET, *timers(options)) if each not in actual.running]
    yield "target", (*(Start(each) for each in extra), *(_first_snapshot() if SNAPSHOT_TIMER in extra else ()))


def _first_snapshot() -> Iterator[Step]:
    """Soon seen whether it works; nothing waits for it."""
    argv = ("systemctl", "start", "--no-block", SNAPSHOT)
    yield Command(argv, may_fail=True, undo=(("systemctl", "stop", SNAPSHOT),))


def _found_cluster(program: str, options: InstallOptions, machine: Machine) -> Iterator[Step]:
    who = ("--name", machine.name, "--address", ",".join(machine.addresses))
    yield Command((program, "host", "enrol", "--role", "server", *who))
    yield Command((program, "init", *options.init))
    if options.role == "all":
        yield Command((program, "host", "enrol", "--role", "node", *who))


def _prune(name: str, actual: Actual) -> Iterator[Step]:
    """The one in use, and the one before it."""
    before = actual.record.version if actual.record is not None else ""
    others = [each for each in actual.versions if each not in (name, before)]
    kept = KEPT_VERSIONS - len({name, before} & {name, *actual.versions})
    yield from (Remove(f"{VERSIONS}/{each}") for each in others[: len(others) - kept])
