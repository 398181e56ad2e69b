"""hostPort: which ports of the node lead where, and the table in nft's words."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec
import pytest
from agent_objects import container, pod

from podlane.api.types import ContainerPort, Pod
from scheduler.agent.hostports import HostPort, host_ports, script

pytestmark = pytest.mark.unit


def asking(name: str, *ports: ContainerPort, second: int = 0, host_network: bool = False) -> Pod:
    made = pod(name, container(ports=ports), host_network=host_network)
    created = datetime(2026, 1, 1, 0, 0, second, tzinfo=UTC)
    return msgspec.structs.replace(made, metadata=msgspec.structs.replace(made.metadata, creation_timestamp=created))


WEB = ContainerPort(container_port=80, host_port=8080)


def test_each_address_of_a_pod_is_led_to_by_those_of_its_family() -> None:
    dns = ContainerPort(container_port=53, host_port=5353, protocol="UDP", host_ip="192.168.64.11")
    found = host_ports([asking("p", WEB, dns)], {"uid-p": ("10.5.3.2", "fd00::2")})
    assert found == {
        HostPort("tcp", "", 8080, "10.5.3.2", 80),
        HostPort("tcp", "", 8080, "fd00::2", 80),
        HostPort("udp", "192.168.64.11", 5353, "10.5.3.2", 53),
    }


def test_ports_without_a_host_port_pods_without_an_address_and_pods_on_the_host_have_none() -> None:
    pods = [
        asking("p", ContainerPort(container_port=80)),
        asking("q", WEB),
        asking("r", WEB, host_network=True),
    ]
    assert host_ports(pods, {"uid-p": ("10.5.3.2",), "uid-r": ("192.168.64.11",)}) == frozenset()


def test_the_older_of_two_pods_has_the_port() -> None:
    pods = [asking("a", WEB, second=2), asking("z", WEB, second=1)]
    ips = {"uid-a": ("10.5.3.2",), "uid-z": ("10.5.3.3",)}
    assert {port.pod_ip for port in host_ports(pods, ips)} == {"10.5.3.3"}
    assert {port.pod_ip for port in host_ports(pods, {"uid-a": ("10.5.3.2",)})} == {"10.5.3.2"}


def test_the_table_is_replaced_as_a_whole() -> None:
    text = script([HostPort("tcp", "", 8080, "10.5.3.2", 80), HostPort("udp", "192.168.64.11", 53, "10.5.3.2", 53)])
    assert text.startswith("add table inet podlane-hostports\ndelete table inet podlane-hostports\ntable inet")
    for line in (
        "elements = { tcp . 8080 : 10.5.3.2 . 80 }",
        "elements = { 192.168.64.11 . udp . 53 : 10.5.3.2 . 53 }",
        "elements = { 10.5.3.2 . 10.5.3.2 }",
        "meta nfproto ipv4 dnat ip to meta l4proto . th dport map @any4",
    ):
        assert f"    {line}\n" in text


def test_without_ports_there_is_no_table() -> None:
    assert script([]) == "add table inet podlane-hostports\ndelete table inet podlane-hostports\n"
