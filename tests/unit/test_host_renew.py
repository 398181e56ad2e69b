"""Renewal by the host's own authority, and what is restarted after any."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from podlane.errors import PodlaneError, UsageError
from podlane.host.join import JoinRecord, write_record
from podlane.host.layout import ORDER
from podlane.host.renew import Renewed, renew, restarts
from podlane.pki import certificates as c
from podlane.pki import files, profile
from podlane.pki.authority import Authority

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, tzinfo=UTC)
HOLDERS = (
    profile.administrator(),
    profile.etcd("s1", ["10.0.0.1"]),
    profile.scheduler("s1"),
    profile.node_daemon("agent", "s1"),
)


@pytest.fixture
def server(tmp_path: Path) -> Path:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    for holder in HOLDERS:
        files.issue_into(tmp_path / "pki", files.file_name(holder.common_name), authority, holder, now=NOW)
    return tmp_path / "pki"


def test_nothing_is_due_and_nothing_is_done(server: Path) -> None:
    before = {path.name: path.read_bytes() for path in server.glob("*.*")}
    assert renew(server, now=NOW + timedelta(days=200)) == Renewed()
    assert {path.name: path.read_bytes() for path in server.glob("*.*")} == before


def test_with_less_than_a_third_left_all_are_renewed_as_they_were(server: Path) -> None:
    keys = {path.name: path.read_bytes() for path in server.glob("*.key")}
    later = NOW + timedelta(days=250)
    done = renew(server, now=later)
    assert done.reasons == dict.fromkeys(("root", "etcd", "scheduler", "agent"), "it ends at 2027-11-29")
    for holder in HOLDERS:
        there = files.read(files.certificate_file(server, files.file_name(holder.common_name)))
        assert c.profile_of(there) == holder
        assert there.not_valid_after_utc == later + timedelta(days=365)
    assert {path.name: path.read_bytes() for path in server.glob("*.key")} == keys


def test_force_renews_what_is_not_due(server: Path) -> None:
    assert set(renew(server, now=NOW, force=True).changed) == {"root.pem", "etcd.pem", "scheduler.pem", "agent.pem"}


def test_a_new_authority_signs_all_and_the_old_one_goes_at_the_end(server: Path) -> None:
    Authority.load(server).succeeded(now=NOW).save()
    begun = renew(server, now=NOW)
    assert len(begun.reasons) == len(HOLDERS)
    Authority.load(server).alone().save()
    assert renew(server, now=NOW).reasons == {}


def test_who_has_neither_authority_nor_join_service_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its certificates were put there by hand"):
        renew(tmp_path, now=NOW)
    write_record(tmp_path, JoinRecord("web1", "node", (), ()))
    with pytest.raises(PodlaneError, match="renew: no join service is known"):
        renew(tmp_path, now=NOW)


@pytest.mark.parametrize(
    ("renewed", "outdated", "expected"),
    [
        (Renewed(), (), ""),
        (Renewed(changed={"netd.pem", "agent.pem", "join.pem", "root.pem"}), (), ""),  # they read the files themselves
        (Renewed(changed={"scheduler.pem"}), (), "scheduler"),
        (Renewed(changed={"ca.pem"}), (), "etcd scheduler"),
        (Renewed(), ("etcd",), "etcd"),  # a renewal before was interrupted
        (Renewed(endpoints=("https://10.0.0.2:2379",)), (), "join scheduler netd proxyd agent"),
        (Renewed(changed={"ca.pem"}, distrusted=True), (), "etcd join scheduler netd proxyd agent"),
    ],
)
def test_what_is_restarted(renewed: Renewed, outdated: tuple[str, ...], expected: str) -> None:
    assert " ".join(restarts(renewed, ORDER, outdated)) == expected  # type: ignore[arg-type]
    assert restarts(renewed, ("netd",), outdated) == (("netd",) if "netd" in expected else ())  # type: ignore[arg-type]
