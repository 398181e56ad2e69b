"""`netd status` for people: what was found in, lines out."""

from __future__ import annotations

from typing import Any

import pytest

from netd.status import render_status, spelled

pytestmark = pytest.mark.unit


def found(unreachable: tuple[str, ...] = (), count: int = 0, **changes: Any) -> dict[str, Any]:
    """A host where all is well, but for this."""
    return {
        "netd": {"pid": 7},
        "daemon": {
            "ready": True,
            "pid": 7,
            "uptimeSeconds": 60.0,
            "waiting": {},
            "errors": {},
            "store": {"silentSeconds": 1.0},
            "lease": {"ageSeconds": 60.0, "expiresInSeconds": None},
            "peers": {"direct": [], "unreachable": list(unreachable), "unreachableCount": count},
        },
        "subnets": ["10.5.1.0/24", "fd00:5:1::/64"],
        "lease": {"stored": True, "reserved": True, "publicAddresses": ["192.168.64.11", "fd64::11"]},
        "interface": "eth0",
        "devices": [],
        "others": 3,
        "peers": 2,
        "skipped": {},
        "undecodable": {},
        "drift": [],
        "errors": [],
        **changes,
    }


def lines(status: dict[str, Any]) -> list[str]:
    return [" ".join(line.split()) for line in render_status(status).splitlines()]


def test_a_host_with_two_families() -> None:
    assert lines(found()) == [
        "Netd: ready, pid 7, up 60s",
        "Etcd: last word 1s ago",
        "Lease: 10.5.1.0/24, fd00:5:1::/64, for 192.168.64.11, fd64::11 on eth0, reserved, held for 60s",
        "Peers: 2 of 3 other hosts",
        "Drift: none",
    ]


def test_other_hosts_subnets_are_spelled_as_people_do() -> None:
    both, six = "10.5.34.0-24&fd00:12:13::-64", "0.0.0.0-0&fd00:12:14::-64"
    said = lines(found((both, "10.5.2.0-24"), 2, skipped={six: "its MAC address is another's"}))
    assert "Peers: 2 of 3 other hosts, no answer from 10.5.34.0/24 with fd00:12:13::/64, 10.5.2.0/24" in said
    assert "Left out: lease fd00:12:14::/64: its MAC address is another's" in said
    assert spelled("10.5.2.0-24") == "10.5.2.0/24"


def test_of_many_that_do_not_answer_some_are_named() -> None:
    assert "Peers: 2 of 3 other hosts, no answer from 10.5.2.0/24 and 41 more" in lines(found(("10.5.2.0-24",), 42))
