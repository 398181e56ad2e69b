"""What firewalld is told: files of our own, for the zone that others come in by."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Interface

import pytest

from netd.model import Interface
from podlane.api.subnets import Address
from podlane.host import conflict, firewall, uninstall
from podlane.host.apply import Undone
from podlane.host.fake import FakeSystem
from podlane.host.firewall import FILES, HOST_POLICY, PODS_POLICY, ZONE
from podlane.host.install import Actual
from podlane.host.layout import unit_name
from podlane.host.machine import as_installed
from podlane.host.options import InstallOptions
from podlane.host.uninstall import Present
from podlane.runtime.command import Completed
from tests.unit.host_world import applier, installed, machine, planned, state, system

pytestmark = pytest.mark.unit

ALL = InstallOptions(role="all", firewalld=True)


def told(options: InstallOptions, zone: str) -> dict[str, str]:
    return {each.path: each.content for each in firewall.files(options, zone)}


def test_others_reach_the_hosts_services_from_their_zone_and_the_pods_are_trusted() -> None:
    files = told(ALL, "internal")
    assert files[HOST_POLICY] == (
        '<?xml version="1.0" encoding="utf-8"?>\n'
        "<!-- Written by podlane install. -->\n"
        '<policy target="CONTINUE">\n'
        "  <short>Podlane: this host's services</short>\n"
        '  <ingress-zone name="internal"/>\n'
        '  <egress-zone name="HOST"/>\n'
        '  <port port="2379-2380" protocol="tcp"/>\n'
        '  <port port="10261" protocol="tcp"/>\n'
        '  <port port="8472" protocol="udp"/>\n'
        '  <port port="10250" protocol="tcp"/>\n'
        "</policy>\n"
    )
    assert '<ingress-zone name="internal"/>\n  <egress-zone name="podlane"/>' in files[PODS_POLICY]
    assert '<interface name="flannel+"/>\n  <interface name="podlane0"/>' in files[ZONE]


def test_a_server_has_no_pods() -> None:
    files = told(InstallOptions(role="server", firewalld=True), "public")
    assert list(files) == [HOST_POLICY]
    assert "8472" not in files[HOST_POLICY]


@pytest.mark.parametrize(("options", "zone"), [(InstallOptions(role="all"), "public"), (ALL, "")])
def test_firewalld_is_left_alone_unless_it_runs_and_it_was_asked_for(options: InstallOptions, zone: str) -> None:
    assert told(options, zone) == {}


class Answering(FakeSystem):
    """A host on which firewalld runs, if `zone` is not None, and answers with `code`."""

    def __init__(self, zone: str | None, code: int) -> None:
        super().__init__(running=set() if zone is None else {"firewalld.service"})
        self._zone, self._code = zone, code

    def run(self, argv: Sequence[str], *, timeout: float, stdin: str = "", check: bool = True) -> Completed:
        if tuple(argv) == ("firewall-cmd", "--get-zone-of-interface=eth1"):
            return Completed(f"{self._zone}\n", "", self._code)
        return super().run(argv, timeout=timeout, stdin=stdin, check=check)


class Wires:
    def interfaces(self) -> tuple[Interface, ...]:
        return tuple(
            Interface(name, index, 1500, up=True, loopback=False, kind="", addresses=(IPv4Interface(f"{ip}/24"),))
            for index, name, ip in ((2, "eth0", "10.0.2.15"), (3, "eth1", "192.0.2.7"))
        )

    def route_to(self, address: Address) -> str:
        raise AssertionError(f"nobody asked for the way to {address}")


@pytest.mark.parametrize(
    ("answer", "code", "zone"), [("internal", 0, "internal"), ("", 2, "ANY"), ("", 254, ""), (None, 0, "")]
)
def test_the_zone_is_that_of_the_interface_with_the_hosts_address(answer: str | None, code: int, zone: str) -> None:
    assert as_installed("host1", ("192.0.2.7",), Answering(answer, code), Wires(), find=lambda _: "").zone == zone


def test_to_open_a_firewalld_that_does_not_run_is_refused() -> None:
    refused = conflict.of_installation(Actual(), ALL, machine(zone=""))
    assert refused.startswith("--firewalld: firewalld does not answer")
    assert conflict.of_installation(Actual(), ALL, machine()) == ""


@pytest.mark.parametrize(
    ("role", "needed"),
    [
        ("server", "2379-2380/tcp, 10261/tcp open in zone public."),
        ("node", "8472/udp, 10250/tcp open in zone public; interfaces flannel+ and podlane0 trusted."),
    ],
)
def test_who_did_not_ask_is_told_what_is_needed(role: str, needed: str) -> None:
    options = InstallOptions(role=role, join="https://192.0.2.1:10261" if role == "node" else "")  # type: ignore[arg-type]
    [note] = planned(system(options), options).notes
    assert needed in note


def test_it_is_opened_before_a_daemon_starts_and_reloaded_after_it_was_undone() -> None:
    fake = system(ALL)
    fake.broken.add(unit_name("netd"))
    with pytest.raises(Undone):
        applier(fake).apply(planned(fake, ALL))
    assert state(fake) == state(system(ALL))
    reload = [n for n, line in enumerate(fake.log) if line == "firewall-cmd --reload"]
    assert fake.log.index(f"write {ZONE}") < reload[0] < fake.log.index("systemctl start podlane-etcd.service")
    assert fake.log.index(f"remove {ZONE}") < reload[1]


def test_a_host_that_came_into_another_zone_is_opened_there() -> None:
    fake = installed(ALL)
    changed = planned(fake, ALL, host=machine(zone="internal"))
    assert [stage.name for stage in changed.stages] == ["firewall"]


def test_what_was_opened_is_closed_unless_pods_stay() -> None:
    present = Present(paths=frozenset(FILES), containers=("c1",))
    text = str(uninstall.plan(present))
    assert text.endswith(f"rm -rf {PODS_POLICY}\n\n# firewall\nfirewall-cmd --reload || true")
    assert "firewall" not in str(uninstall.plan(present, keep_pods=True))
