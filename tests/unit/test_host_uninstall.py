"""Taking Podlane off a host: in which order, and what stays."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest

from podlane.errors import ApplyError
from podlane.host import uninstall
from podlane.host.fake import FakeSystem
from podlane.host.install import decode
from podlane.host.layout import BACKUPS, ETC, ETCD_DATA, OPT, PKI, RECORD, STATE, unit_name
from podlane.host.system import Found
from podlane.host.uninstall import Present
from tests.unit.host_world import NODE, applier, installed

pytestmark = pytest.mark.unit


def clear(fake: FakeSystem, argv: Sequence[str]) -> None:
    """`find FOLDER -mindepth 1 -maxdepth 1 ! -path KEPT … -exec rm -rf`."""
    spared = [word for before, word in itertools.pairwise(argv) if before == "-path"]
    for name in fake.names(argv[1]):
        if f"{argv[1]}/{name}" not in spared:
            fake.remove(f"{argv[1]}/{name}")


def host() -> FakeSystem:
    fake = installed()
    fake.write(f"{ETCD_DATA}/member", b"data", 0o600)
    fake.write(f"{BACKUPS}/etcd-host1-20261129T014218Z.db", b"data", 0o600)
    fake.write(f"{STATE}/netd/node-id.json", b"{}", 0o644)
    fake.effects["find"] = clear
    return fake


def test_the_keys_and_the_data_stay_and_it_is_said() -> None:
    fake = host()
    plan = uninstall.plan(uninstall.look(fake))
    applier(fake).finish(plan)
    assert plan.notes[:3] == (f"kept: {PKI}", f"kept: {BACKUPS}", f"kept: {ETCD_DATA}")
    assert {path for path, found in fake.files.items() if found.kind == "file"} == {
        *(path for path in host().files if path.startswith(f"{PKI}/") and not path.endswith("issued")),
        f"{ETCD_DATA}/member",
        f"{BACKUPS}/etcd-host1-20261129T014218Z.db",
    }
    assert not fake.running
    assert not fake.enabled


def test_a_purge_leaves_nothing() -> None:
    fake = host()
    applier(fake).finish(uninstall.plan(uninstall.look(fake), purge=True))
    assert fake.files == {}
    assert uninstall.plan(uninstall.look(fake)).stages == ()


def test_pods_end_before_their_network_and_the_store_is_there_until_then() -> None:
    record = installed().files[RECORD]
    present = Present(
        record=decode(record.content),
        units=(unit_name("agent"), unit_name("etcd")),
        running=frozenset({unit_name("agent"), unit_name("netd"), unit_name("etcd")}),
        containers=("c1", "c2"),
        mounts=(f"{STATE}/agent/pods/u/volumes/secret",),
        paths=frozenset({OPT, ETC, STATE, "/run/flannel"}),
    )
    assert str(uninstall.plan(present)).splitlines() == [
        "# daemons",
        "systemctl stop podlane-agent.service",
        "systemctl stop podlane-netd.service",
        "",
        "# pods",
        "docker rm --force --volumes c1 c2",
        "umount /var/lib/podlane/agent/pods/u/volumes/secret",
        "",
        "# network",
        "/opt/podlane/bin/proxyd uninstall",
        "/opt/podlane/bin/netd uninstall",
        "ip link delete podlane0 || true",
        "nft delete table inet podlane-hostports || true",
        "",
        "# etcd",
        "systemctl stop podlane-etcd.service",
        "",
        "# units",
        "systemctl disable --quiet podlane-agent.service podlane-etcd.service",
        "rm -rf /etc/systemd/system/podlane-agent.service",
        "rm -rf /etc/systemd/system/podlane-etcd.service",
        "systemctl daemon-reload",
        "rmdir --ignore-fail-on-non-empty /run/flannel || true",
        "",
        "# files",
        "rm -rf /opt/podlane",
        "rm -rf /etc/podlane",
        "rm -rf /var/lib/podlane",
    ]


def test_pods_that_are_kept_keep_their_network_and_volumes() -> None:
    present = Present(containers=("c1",), mounts=(f"{STATE}/agent/m",), paths=frozenset({OPT, STATE}))
    text = str(uninstall.plan(present, keep_pods=True))
    assert "docker" not in text
    assert "umount" not in text
    assert "netd uninstall" not in text
    assert f"find {STATE} -mindepth 1 -maxdepth 1 '!' -path {STATE}/agent -exec" in text


def test_what_fails_does_not_keep_the_rest_from_going() -> None:
    fake = installed(NODE)
    fake.effects["find"] = clear

    def fail(system: FakeSystem, argv: Sequence[str]) -> None:
        raise ApplyError([("proxyd", OSError("it hangs"))])

    fake.effects["proxyd uninstall"] = fail
    with pytest.raises(ApplyError, match=r"^network: "):
        applier(fake).finish(uninstall.plan(uninstall.look(fake), purge=True))
    assert fake.files == {}


def test_nothing_is_there() -> None:
    assert uninstall.plan(uninstall.look(FakeSystem(files={"/etc/hosts": Found("file", mode=0o644)}))).stages == ()
