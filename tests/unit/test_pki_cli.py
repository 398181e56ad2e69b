"""`podlane pki`: what is typed, and what is printed."""

from __future__ import annotations

import json
import re
import shutil
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from cli_shell import NOW, Shell, lines

from podlane.host.joinservice import ServiceRecord
from podlane.host.jointokens import ca_hash
from podlane.pki.authority import Authority
from podlane.runtime.clock import ScriptedClock
from podlane.store import keys
from podlane.store.interface import Put

pytestmark = pytest.mark.unit


class Host(Shell):
    """`podlane pki` on 2026-03-01 and `later` days after; authorities are called A, B, … in what it prints."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._named: dict[str, str] = {}

    def pki(self, command: str, *, later: int = 0, code: int = 0) -> tuple[str, str]:
        self.clock = ScriptedClock((NOW + timedelta(days=later)).timestamp())
        result = self.run("pki", *command.split(), "--dir", str(self.folder))
        assert result.exit_code == code, result.output
        return self._readable(result.stdout), self._readable(result.stderr)

    def issue(self, what: str, *, later: int = 0) -> None:
        self.pki(f"issue {what} --offline", later=later)

    def _readable(self, text: str) -> str:
        def name(found: re.Match[str]) -> str:
            return self._named.setdefault(found[0], chr(ord("A") + len(self._named)))

        text = re.sub(r"podlane authority [0-9a-f]{8}", name, text).replace(str(self.folder), "DIR")
        return re.sub(r" {3,}", "  ", text)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's folder `pki`, and a node's `n1`."""
    folder = tmp_path_factory.mktemp("made")
    host = Host(folder / "pki")
    out, _ = host.pki("init")
    assert lines(out)[0] == "made A in DIR, until 2036-02-27"
    host.issue(f"etcd s1 --address 10.0.0.1 --out {host.folder}")
    host.issue(f"node n1 --out {folder / 'n1'}")
    return folder


@pytest.fixture
def host(made: Path, tmp_path: Path) -> Host:
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    host = Host(tmp_path / "pki")
    host.pki("list")  # so that its authority is A
    return host


def test_an_authority_is_made_once(host: Host) -> None:
    before = (host.folder / "ca.key").read_bytes()
    assert host.pki("init", code=1)[1] == "error: make authority in DIR: ca.key is there already, an authority\n"
    assert (host.folder / "ca.key").read_bytes() == before


def test_list(host: Host) -> None:
    assert host.pki("list", later=334)[0] == (
        "NAME  ORGANIZATION  USE  SIGNED BY  EXPIRES  FILE\n"
        "A  authority  A  2036-02-27 (3316 days)  ca.pem\n"
        "etcd@s1  podlane:servers  server,client  A  2027-03-01 (31 days)  etcd.pem\n"
        "agent@n1  podlane:nodes  server,client  A  2027-03-01 (31 days)  -\n"
        "netd@n1  podlane:nodes  client  A  2027-03-01 (31 days)  -\n"
        "proxyd@n1  podlane:nodes  client  A  2027-03-01 (31 days)  -\n"
    )


def test_list_warns_of_what_ends_soon(host: Host) -> None:
    assert host.pki("list", later=350)[1] == "".join(
        f"warning: {name}: expires in 15 days\n" for name in ("etcd@s1", "agent@n1", "netd@n1", "proxyd@n1")
    )
    out, told = host.pki("list", later=370)
    assert "etcd@s1  podlane:servers  server,client  A  2027-03-01 (expired)  etcd.pem\n" in out
    assert told.startswith("warning: etcd@s1: expired 5 days ago\n")


def test_list_for_scripts_and_on_a_host_without_the_authority(host: Host, tmp_path: Path) -> None:
    host.folder = tmp_path / "n1"
    told = json.loads(host.pki("list -o json")[0])
    assert [each["name"] for each in told["authorities"]] == ["A"]
    agent = told["certificates"][0]
    assert agent.pop("fingerprint")
    assert agent == {
        "name": "agent@n1",
        "organization": "podlane:nodes",
        "uses": ["server", "client"],
        "signedBy": "A",
        "expires": "2027-03-01T12:00:00Z",
        "daysLeft": 365,
        "file": "agent.pem",
    }


def test_rotate_renews_what_is_here(host: Host) -> None:
    assert host.pki("rotate", later=300) == (
        "renew etcd\n",
        "done. `podlane host renew` restarts what works with copies of these files\n",
    )
    assert (
        "etcd@s1  podlane:servers  server,client  A  2027-12-26 (365 days)  etcd.pem\n"
        in host.pki("list", later=300)[0]
    )


def test_a_new_authority(host: Host, tmp_path: Path) -> None:
    begin = "make a new authority, cross-signed by the one before\nrenew etcd\n"
    assert host.pki("rotate --authority --dry-run") == (begin, "")
    out, told = host.pki("rotate --authority")
    waits = "the rotation waits for 3 certificates by A: agent@n1, netd@n1, proxyd@n1"
    assert (out, lines(told)[0]) == (begin, waits)
    assert lines(host.pki("rotate --authority", code=1)[1])[0] == f"error: {waits}"
    assert [line.split("  ")[:4] for line in lines(host.pki("list")[0])[1:4]] == [
        ["B", "authority", "B", "2036-02-27 (3650 days)"],
        ["A", "authority", "A", "2036-02-27 (3650 days)"],
        ["etcd@s1", "podlane:servers", "server,client", "B"],
    ]
    host.issue(f"node n1 --out {tmp_path / 'n1'}")
    out, told = host.pki("rotate --authority")
    assert out == "trust the authority before no longer\n"
    assert told.startswith("done. What runs takes it over by itself, but an etcd that was started before trusts")
    assert (tmp_path / "n1" / "ca.pem").read_text().count("BEGIN") == 2
    assert (host.folder / "ca.pem").read_text().count("BEGIN") == 1


def test_another_server_has_to_get_the_new_key_first(host: Host) -> None:
    def tell(server: str, folder: Path) -> None:
        record = ServiceRecord((), ca_hash(Authority.load(folder).bundle), "", "1")
        host.store.txn([], [Put(keys.JOIN_SERVICES + server, msgspec.json.encode(record))])

    host.issue(f"join s1 --address 10.0.0.1 --out {host.folder}")
    host.pki("forget netd@n1 proxyd@n1 agent@n1")
    for server in ("s1", "s2"):
        tell(server, host.folder)
    copy = (
        "s2: the join service there signs with another authority: copy this ca.key to it, run `podlane pki rotate` "
        "there, and wait a minute"
    )
    assert lines(host.pki("rotate --authority")[1]) == [
        "next: `podlane pki rotate --authority` once more, to end the rotation",
        copy,
    ]
    tell("s1", host.folder)
    assert host.pki("rotate --authority", code=1) == ("", f"error: {copy}\n")
    tell("s2", host.folder)
    assert host.pki("rotate --authority")[0] == "trust the authority before no longer\n"


def test_what_is_gone_is_forgotten(host: Host) -> None:
    host.pki("rotate --authority")
    assert host.pki("forget netd@n1 netd@n2", code=1)[1] == "error: forget netd@n2: B has signed no such name\n"
    host.pki("forget netd@n1 proxyd@n1 agent@n1")
    assert host.pki("rotate --authority")[0] == "trust the authority before no longer\n"


def test_a_rotation_can_be_forced_to_end(host: Host) -> None:
    host.pki("rotate --authority")
    assert host.pki("rotate --authority --force")[0] == "trust the authority before no longer\n"


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("issue operator --offline", 2, "issue operator: NAME is missing"),
        ("issue operator agent --offline", 2, 'certificate: name: "agent" is a part of Podlane, choose another'),
        ("issue root alice --offline", 2, 'issue root: it is always called root, got "alice"'),
        ("issue etcd s2 --offline", 2, "--address: expected an address of s2"),
        ("issue node n2", 2, "--address: expected an address of n2"),
        ("issue etcd s2 --address 10.0.0 --offline", 2, "--address: '10.0.0' does not appear to be an IPv4 or IPv6"),
        ("issue scheduler s1 --address 10.0.0.1", 2, "--address: a certificate for scheduler has no use for it"),
        ("issue etcd s2 --address 10.0.0.2 --offline --out {}", 2, "issue etcd@s2: DIR/etcd.pem is etcd@s1's; give"),
        ("rotate --force", 2, "--force: goes with --authority"),
    ],
)
def test_what_does_not_go_together(host: Host, command: str, code: int, message: str) -> None:
    before = sorted(host.folder.rglob("*"))
    assert host.pki(command.format(host.folder), code=code)[1].startswith(f"error: {message}")
    assert sorted(host.folder.rglob("*")) == before


def test_without_the_authority_nothing_is_signed(host: Host, tmp_path: Path) -> None:
    host.folder = tmp_path / "n1"
    assert host.pki("issue root --offline", code=1)[1] == "error: load authority: DIR/ca.key is not there\n"
    assert host.pki("rotate", code=1)[1] == (
        "error: load authority: DIR/ca.key is not there: elsewhere `podlane host renew` renews, with the join "
        "service's help\n"
    )
