"""The units and settings as they are written, and what systemd itself says of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from podlane.host.dropins import drop_ins, wrappers
from podlane.host.layout import NODE_DAEMONS, ORDER, Daemon, unit_name
from podlane.host.settings import settings
from podlane.host.units import daemon_unit, renew_units, snapshot_units
from tests.unit.host_world import ALL, NODE, machine

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("host_golden")


@pytest.mark.parametrize("daemon", ORDER)
def test_unit(daemon: Daemon) -> None:
    assert daemon_unit(daemon, etcd_program="/usr/bin/etcd") == (GOLDEN / unit_name(daemon)).read_text()


def test_what_timers_start() -> None:
    for path, text in (renew_units() | snapshot_units()).items():
        assert text == (GOLDEN / path.rpartition("/")[2]).read_text()


def test_settings_of_a_server_that_runs_pods() -> None:
    told = "".join(f"==> {file.path}\n{file.content}" for file in settings(ALL, machine()))
    assert told == (GOLDEN / "settings-all.txt").read_text()


def test_a_node_that_joins_learns_where_etcd_is_when_it_has_joined() -> None:
    names = [file.path.rpartition("/")[2] for file in settings(NODE, machine())]
    assert names == ["netd.env", "proxyd.env", "agent.env"]


def test_an_ipv6_address_is_bracketed_and_a_second_family_told_to_netd() -> None:
    host = machine(addresses=("fd00::7", "192.0.2.7"))
    told = "".join(file.content for file in settings(ALL, host))
    assert "ETCD_ADVERTISE_CLIENT_URLS=https://[fd00::7]:2379\n" in told
    assert "NETD_IFACE=fd00::7\nNETD_PUBLIC_IPV6=192.0.2.7\n" in told


@pytest.mark.parametrize("daemon", ORDER)
def test_what_holds_for_every_daemon(daemon: Daemon) -> None:
    lines = daemon_unit(daemon).splitlines()
    for line in ("Type=notify", "Restart=always", "NoNewPrivileges=yes", "StartLimitBurst=30", "PartOf=podlane.target"):
        assert line in lines
    assert ("WatchdogSec=60" in lines) == (daemon != "etcd")
    assert ("ProtectSystem=strict" in lines) == (daemon != "agent")


def test_capabilities() -> None:
    def capabilities(daemon: Daemon) -> set[str]:
        return set(re.findall(r"CAP_\w+", daemon_unit(daemon)))

    assert {each: capabilities(each) for each in ORDER if each not in NODE_DAEMONS} == {
        "etcd": set(),
        "join": set(),
        "scheduler": set(),
    }
    assert capabilities("proxyd") == {"CAP_NET_ADMIN"}
    assert capabilities("netd") == {"CAP_NET_ADMIN", "CAP_NET_RAW"}


def test_without_tls_no_keys_are_loaded() -> None:
    assert "LoadCredential" in daemon_unit("scheduler")
    assert "LoadCredential" not in daemon_unit("scheduler", tls=False)


def test_network_manager_is_told_only_where_it_is() -> None:
    def paths(*, there: bool) -> set[str]:
        return {each.path for each in drop_ins(network_manager=there, own_etcd=False)}

    assert paths(there=True) - paths(there=False) == {"/etc/NetworkManager/conf.d/podlane.conf"}


def test_a_daemons_command_on_the_path_has_its_settings() -> None:
    commands = {each.path: each for each in wrappers()}
    assert "for file in /etc/podlane/cluster.env /etc/podlane/netd.env" in commands["/opt/podlane/bin/netd"].content
    assert {each.mode for each in commands.values()} == {0o755}
