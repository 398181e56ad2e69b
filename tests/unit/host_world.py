"""Hosts and bundles for the tests of installing."""

from __future__ import annotations

from collections.abc import Sequence

from podlane.host import install
from podlane.host.apply import Applier
from podlane.host.fake import FakeSystem
from podlane.host.layout import CLUSTER_ENVIRONMENT, ETC, PKI
from podlane.host.machine import Bundle, Machine
from podlane.host.options import InstallOptions
from podlane.host.settings import key_files
from podlane.host.steps import Plan
from podlane.host.system import Found
from podlane.runtime.clock import ScriptedClock

BUNDLE = Bundle("/var/tmp/podlane.x", "1.0.0", "0123456789abcdef", "/usr/bin/python3")
NEXT = Bundle("/var/tmp/podlane.y", "1.1.0", "fedcba9876543210", "/usr/bin/python3", with_etcd=True)
ALL = InstallOptions(role="all")
NODE = InstallOptions(role="node", join="https://192.0.2.1:10261")


def machine(**changes: object) -> Machine:
    known: dict[str, object] = {
        "name": "host1",
        "addresses": ("192.0.2.7",),
        "iface": "eth0",
        "etcd": "/usr/bin/etcd",
        "zone": "public",
    }
    return Machine(**{**known, **changes})  # type: ignore[arg-type]


def system(options: InstallOptions = ALL) -> FakeSystem:
    """An empty host, on which the steps that make keys make them."""

    def keys(fake: FakeSystem, argv: Sequence[str]) -> None:
        del argv
        for name in key_files(options):
            fake.files[f"{PKI}/{name}"] = Found("file", b"key", mode=0o600)

    def join(fake: FakeSystem, argv: Sequence[str]) -> None:
        keys(fake, argv)
        fake.files[CLUSTER_ENVIRONMENT] = Found("file", b"PODLANE_ETCD_ENDPOINTS=https://192.0.2.1:2379\n", mode=0o644)

    return FakeSystem(effects={"podlane host keys": keys, "podlane host join": join})


def planned(
    fake: FakeSystem, options: InstallOptions = ALL, bundle: Bundle = BUNDLE, host: Machine | None = None
) -> Plan:
    host = host or machine()
    wanted = install.files(options, host, bundle)
    return install.plan(options, host, bundle, install.look(fake, wanted), token="t0ken")


def installed(options: InstallOptions = ALL, bundle: Bundle = BUNDLE) -> FakeSystem:
    fake = system(options)
    applier(fake).apply(planned(fake, options, bundle))
    return fake


def applier(fake: FakeSystem) -> Applier:
    return Applier(fake, ScriptedClock(), ready_timeout=30)


def state(fake: FakeSystem) -> tuple[object, ...]:
    return dict(fake.files), set(fake.running), set(fake.enabled)


__all__ = ["ALL", "BUNDLE", "ETC", "NEXT", "NODE", "applier", "installed", "machine", "planned", "state", "system"]
