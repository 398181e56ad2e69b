"""Who a node is: drawn once, kept, not shared with a copy of the disk."""

from __future__ import annotations

import json
from ipaddress import ip_address
from pathlib import Path

import pytest

from netd.identity import FILE, StateLock, load_or_create
from netd.records import Claim, RecentNode, claim_key, recent_key
from podlane.api.subnets import Subnets
from podlane.errors import PodlaneError

pytestmark = pytest.mark.unit


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "product_uuid"
    path.write_text("aaaa\n")
    return path


def test_an_id_is_drawn_once_and_kept(tmp_path: Path, machine: Path) -> None:
    first = load_or_create(tmp_path / "state", machine_file=machine)
    assert len(first.node_id) == 32
    assert load_or_create(tmp_path / "state", machine_file=machine) == first
    assert load_or_create(tmp_path / "other", machine_file=machine).node_id != first.node_id
    assert first.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert load_or_create(tmp_path / "state", machine_file=machine, host_name="web1").host_name == "web1"


def test_a_disk_copied_to_another_machine_gets_a_new_id(tmp_path: Path, machine: Path) -> None:
    first = load_or_create(tmp_path, machine_file=machine)
    machine.write_text("bbbb\n")
    second = load_or_create(tmp_path, machine_file=machine)
    assert second.node_id != first.node_id
    assert load_or_create(tmp_path, machine_file=machine) == second


@pytest.mark.parametrize("known_then", [True, False])
def test_a_machine_that_does_not_tell_keeps_the_id(tmp_path: Path, machine: Path, known_then: bool) -> None:
    none = tmp_path / "none"
    before, after = (machine, none) if known_then else (none, machine)
    first = load_or_create(tmp_path, machine_file=before)
    assert load_or_create(tmp_path, machine_file=after) == first


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"node":5}', '{"node":""}', "\x00garbage"])
def test_a_damaged_file_costs_the_id_and_not_the_start(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    drawn = load_or_create(tmp_path)
    assert drawn.node_id
    assert load_or_create(tmp_path) == drawn
    assert json.loads((tmp_path / FILE).read_text())["node"] == drawn.node_id


def test_no_boot_id_and_no_place_to_write_are_errors(tmp_path: Path) -> None:
    with pytest.raises(PodlaneError, match=r"read .*/none: No such file"):
        load_or_create(tmp_path, boot_id_file=tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(PodlaneError, match=r"write .*: Not a directory"):
        load_or_create(tmp_path / "file" / "state")


def test_one_netd_per_state_directory(tmp_path: Path) -> None:
    first = StateLock(tmp_path / "state")
    with pytest.raises(PodlaneError, match=r"another netd has it, process \d+"):
        StateLock(tmp_path / "state")
    first.release()
    with StateLock(tmp_path / "state"), StateLock(tmp_path / "other"):
        pass


def test_keys_are_below_flannels_prefix_in_our_own() -> None:
    both = Subnets.parse_key("10.5.34.0-24&fd00:12:13::-64")
    assert recent_key("/coreos.com/network", both) == (
        "/podlane/netd/coreos.com/network/recent/10.5.34.0-24&fd00:12:13::-64"
    )
    assert claim_key("/coreos.com/network/", ip_address("fd00::1")) == "/podlane/netd/coreos.com/network/nodes/fd00::1"
    assert claim_key("/", ip_address("10.0.0.1")) == "/podlane/netd/nodes/10.0.0.1"


def test_records_are_read_as_they_were_written() -> None:
    claim = Claim("n", "b", "web1", "2024-01-01T00:00:00Z")
    assert Claim.decode(claim.encode()) == claim
    recent = RecentNode("n", frozenset({ip_address("10.0.0.1"), ip_address("fd00::1")}))
    assert RecentNode.decode(recent.encode()) == recent


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"\xff", "can't decode"),
        (b"[]", "expected a JSON object"),
        (b'{"node":1,"addresses":[]}', "node: expected a string"),
        (b'{"node":"n","addresses":["x"]}', "boot: expected a string|does not appear to be"),
    ],
)
def test_what_is_no_record_is_refused(data: bytes, why: str) -> None:
    for kind in (Claim, RecentNode):
        with pytest.raises(ValueError, match=why):
            kind.decode(data)
