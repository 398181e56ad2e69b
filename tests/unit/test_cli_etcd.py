"""`podlane etcd` as it is typed: what is wrong is said before any etcd is asked; and what the tables show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from podlane.cli.etcdmembers import await_vote
from podlane.cli.etcdstatus import table_of
from podlane.cli.main import cli
from podlane.cli.session import Session
from podlane.errors import StoreUnavailable
from podlane.runtime.clock import ScriptedClock
from podlane.store.adminwire import Member, MemberStatus
from podlane.store.interface import Refused
from podlane.store.quorum import Survey, Surveyed

MISTAKES = {
    "add-member S2! --peer-url https://10.0.0.12:2380": "error: add member: NAME: ",
    "add-member s2 --peer-url 10.0.0.12": 'add member: --peer-url: expected https://ADDRESS:2380, got "10.0.0.12"',
    "add-member s2 --peer-url https://10.0.0.12:x": 'expected https://ADDRESS:2380, got "https://10.0.0.12:x"',
    "snapshot x.db --keep 3": "error: --keep: expected a folder that is there, got x.db",
    "restore x.db --data-dir d --name s1 --peer-url https://a:1 --initial-cluster s1": (
        'error: restore: --initial-cluster: expected NAME=URL,…, got "s1"'
    ),
}


@pytest.mark.parametrize("line", MISTAKES)
def test_what_is_typed_wrong_is_told_without_an_etcd(line: str) -> None:
    done = CliRunner().invoke(cli, ["etcd", *line.split()], prog_name="podlane")
    assert MISTAKES[line] in done.stderr
    assert done.exit_code == 2


def test_a_snapshot_that_is_not_there(tmp_path: Path) -> None:
    arguments = ["restore", str(tmp_path / "x.db"), "--data-dir", str(tmp_path / "d"), "--name", "s1"]
    done = CliRunner().invoke(cli, ["etcd", *arguments, "--peer-url", "https://a:1"], prog_name="podlane")
    assert (done.exit_code, done.stderr) == (1, f"error: read {tmp_path / 'x.db'}: No such file or directory\n")
    assert list(tmp_path.iterdir()) == []


def test_a_row_for_each_member_also_for_one_that_is_silent() -> None:
    def status(member: int, index: int, applied: int, in_use: int) -> MemberStatus:
        return MemberStatus(member, 7, "3.4.23", 3 << 20, in_use, 0xA, 2, index, applied, False, 5)

    def member(number: int, name: str) -> Member:
        return Member(number, name, (f"https://{name}:2380",), (f"https://{name}:2379",))

    survey = Survey(
        (
            Surveyed(member(0xA, "s1"), "https://s1:2379", status(0xA, 40, 40, 1 << 20), 0.0021),
            Surveyed(member(0xB, "s2"), "https://s2:2379", status(0xB, 38, 31, 0), 0.01),
            Surveyed(member(0xC, "s3"), "https://s3:2379", problem="Connection refused"),
            Surveyed(Member(0xD, "", ("https://s4:2380",), learner=True), problem="added, not started yet"),
        )
    )
    rows = [line.split("   ") for line in table_of(survey).splitlines()]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        [
            *("NAME", "ID", "ENDPOINT", "VERSION", "SIZE", "IN USE", "ROLE"),
            *("TERM", "INDEX", "BEHIND", "LATENCY", "PROBLEM"),
        ],
        ["s1", "a", "https://s1:2379", "3.4.23", "3.0 MiB", "1.0 MiB", "leader", "2", "40", "0", "2.1 ms", "-"],
        ["s2", "b", "https://s2:2379", "3.4.23", "3.0 MiB", "-", "follower", "2", "38", "9", "10.0 ms", "-"],
        ["s3", "c", "https://s3:2379", *"-" * 8, "Connection refused"],
        ["<not started>", "d", *"-" * 4, "learner", *"-" * 4, "added, not started yet"],
    ]


NEW = Member(0xB, "s2", ("https://s2:2380",), (), learner=True)
OLD = Member(0xA, "s1", ("https://s1:2380",), ("https://s1:2379",))


@dataclass
class SlowEtcd:
    """What it answers, one after another: each a member as it is seen, or an error; the last for ever."""

    script: list[Member | StoreUnavailable | Refused]
    promotions: int = 0

    def _now(self) -> Member:
        found = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(found, StoreUnavailable):
            raise found
        assert isinstance(found, Member)
        return found

    def members(self) -> tuple[Member, ...]:
        return OLD, self._now()

    def promote_member(self, member_id: int) -> None:
        assert member_id == NEW.id
        self.promotions += 1
        if isinstance(self.script[0], Refused):
            error = self.script.pop(0)
            assert isinstance(error, Refused)
            raise error


BUSY = StoreUnavailable("list members: Deadline Exceeded")
BEHIND = Refused("promote: etcdserver: can only promote a learner member which is in sync with leader")
PROMOTED = Refused("promote: etcdserver: can only promote a learner member")
VOTES = replace(NEW, learner=False)


def waiting(etcd: SlowEtcd, capsys: pytest.CaptureFixture[str]) -> list[str]:
    try:
        await_vote(Session(clock=ScriptedClock()), etcd, "s2", NEW, 60)
    except click.ClickException as error:
        return [*capsys.readouterr().err.splitlines(), error.message]
    told = capsys.readouterr()
    return [*told.err.splitlines()[:-1], *told.out.splitlines()]


def test_a_slow_etcd_is_waited_for_until_the_member_votes(capsys: pytest.CaptureFixture[str]) -> None:
    etcd = SlowEtcd([replace(NEW, name=""), BUSY, NEW, BEHIND, BUSY, NEW, PROMOTED, VOTES])
    assert waiting(etcd, capsys) == [
        "member s2: waits for its host",
        "member s2: no answer: list members: Deadline Exceeded",
        "member s2: catches up",
        "member s2: no answer: list members: Deadline Exceeded",
        "member s2 votes; members: s1, s2",
    ]
    assert etcd.promotions == 2


def test_when_the_time_is_up_it_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert waiting(SlowEtcd([replace(NEW, name="")]), capsys) == [
        "member s2: waits for its host",
        "add member s2: waits for its host, for 60 s; do this again once it runs",
    ]
