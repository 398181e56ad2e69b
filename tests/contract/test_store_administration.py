"""Administration on real etcd with TLS: users and roles, members that come and go, what a failed connection says."""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.cli.main import cli
from podlane.errors import PermissionDenied, PodlaneError, StoreUnavailable, UsageError
from podlane.host import snapshotage
from podlane.host.layout import PKI
from podlane.host.machine import Machine
from podlane.host.options import InstallOptions
from podlane.host.settings import settings
from podlane.host.units import snapshot_units
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from podlane.store import snapshot
from podlane.store.administration import Administration
from podlane.store.config import StoreConfig
from podlane.store.interface import Put
from podlane.store.roles import ROOT, Permission, Role
from tests.conftest import Etcd, in_memory, running
from tests.contract.secured_etcd import SecuredEtcd, eventually

pytestmark = [pytest.mark.contract, pytest.mark.timeout(300)]

PATIENCE = 30.0
HOST = Machine("server1", ("127.0.0.1",), "lo")
SOMEBODY = profile.operator("somebody")


@pytest.fixture(scope="module")
def etcd() -> Iterator[SecuredEtcd]:
    with in_memory() as folder, running(SecuredEtcd(folder)) as secured:
        yield secured


@pytest.fixture(scope="module")
def admin(etcd: SecuredEtcd) -> Iterator[Administration]:
    """Of an etcd that asks everybody who he is."""
    with etcd.administration() as found:
        assert not found.auth_enabled()
        with contextlib.closing(Administration(etcd.config(SOMEBODY))) as other:
            assert_would_be_locked_out(other)
        found.enable_auth()
        found.enable_auth()
        assert found.auth_enabled()
        yield found


def assert_would_be_locked_out(other: Administration) -> None:
    with pytest.raises(UsageError, match=r'"somebody", as whom this is asked, lacks the role root'):
        other.enable_auth()
    assert not other.auth_enabled()


def test_roles_and_users_are_brought_to_what_is_wanted(admin: Administration, etcd: SecuredEtcd) -> None:
    def tries() -> str:
        with etcd.as_user(SOMEBODY) as store:
            done = ""
            for letter in "abc":
                with contextlib.suppress(PermissionDenied):
                    store.txn([], [Put(f"/{letter}/x", b"")])
                    done += letter
            return done

    for access, expected in ((["a", "b"], "ab"), (["b", "c"], "bc"), ([], "")):
        permissions = tuple(Permission("readwrite", f"/{letter}/", prefix=True) for letter in access)
        for _ in range(2):
            admin.ensure_role(Role("changing", permissions))
            admin.ensure_user("somebody", ["changing"])
        assert tries() == expected
    admin.ensure_role(Role("changing", (Permission("readwrite", "/a/", prefix=True),)))
    admin.ensure_role(Role("changing", (Permission("readwrite", "/b/", prefix=True),)), narrow=False)
    assert tries() == "ab"
    admin.ensure_role(Role("other", (Permission("readwrite", "/c/", prefix=True),)))
    admin.ensure_user("somebody", ["other"])
    assert admin.user_roles("somebody") == ("other",)
    assert tries() == "c"
    for _ in range(2):
        admin.delete_user("somebody")
        admin.delete_role("changing")
    assert "somebody" not in admin.users()
    assert admin.roles() == ("other",)
    with etcd.as_user(SOMEBODY) as store, pytest.raises(PermissionDenied, match="permission denied, for user somebody"):
        store.get("/c/x")
    with contextlib.closing(Administration(etcd.config(SOMEBODY))) as other, pytest.raises(PermissionDenied):
        other.users()


def test_who_works_does_not_notice_that_others_roles_change(admin: Administration, etcd: SecuredEtcd) -> None:
    stop = threading.Event()
    done: list[int] = []
    failures: list[PodlaneError] = []

    def work() -> None:
        with etcd.as_user(profile.administrator()) as store:
            while not stop.is_set():
                try:
                    revision = store.txn([], [Put("/work", b"")], timeout=PATIENCE).revision
                    store.get("/work", timeout=PATIENCE)
                    store.watch("/work", start_revision=revision, timeout=PATIENCE).cancel()
                    done.append(revision)
                except PodlaneError as error:
                    failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(40):
        admin.ensure_role(Role("changing", (Permission("read", f"/{number}"),)))
    stop.set()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert done


def podlane(etcd: SecuredEtcd, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(cli, ["etcd", *arguments, *etcd.options()], prog_name="podlane", catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


def test_members_come_and_go(admin: Administration, etcd: SecuredEtcd, tmp_path: Path) -> None:
    for name in ("s2", "s3"):
        new = etcd.new_member(name)
        printed = podlane(etcd, "add-member", name, "--peer-url", new.peer_url, "--timeout", "0")
        cluster = ",".join([*(member.peer for member in etcd.members), new.peer])
        assert f"--role server --name {name} --address 127.0.0.1 --join" in printed
        assert f"--etcd-join {cluster}\n" in printed
        assert "has not started; that one first" in podlane(
            etcd, "add-member", "s9", "--peer-url", "https://127.0.0.9:1", code=1
        )
        new.start(cluster, "existing")
        etcd.members.append(new)
        assert f"member {name} votes" in podlane(etcd, "add-member", name, "--peer-url", new.peer_url)
    etcd.wait_ready()
    told = json.loads(podlane(etcd, "status", "-o", "json"))
    assert [(each["name"], each["problem"], each["learner"]) for each in told["members"]] == [
        ("s1", "", False),
        ("s2", "", False),
        ("s3", "", False),
    ]

    pauses = [line for line in podlane(etcd, "defragment", "--compact", "--disarm").splitlines() if " -> " in line]
    assert sorted(line.split(":")[0] for line in pauses) == ["member s1", "member s2", "member s3"]
    last = etcd.members.pop()
    last.stop()
    left = {member.id for member in admin.members() if member.name != last.name}
    eventually(
        lambda: all(admin.status(member.endpoint).leader in left for member in etcd.members), "one of the two leads"
    )
    assert "s3   " in podlane(etcd, "status", code=1)
    assert "1 of the 2 others answer and 2 are needed" in podlane(etcd, "remove-member", "s2", code=1)
    assert "meanwhile 1 of 3 would answer" in podlane(etcd, "defragment", "s2", code=1)
    assert "member s3 removed; left: s1, s2" in podlane(etcd, "remove-member", "s3")
    assert [member.name for member in admin.members()] == ["s1", "s2"]


def as_the_timer_does(etcd: SecuredEtcd, folder: Path, **changes: str) -> int:
    """What podlane-snapshot.service runs, with its environment; returns the exit code."""
    told = "".join(file.content for file in settings(InstallOptions(role="server"), HOST) if "snapshot" in file.path)
    told += "".join(re.findall("^Environment=(.*\n)", "".join(snapshot_units().values()), flags=re.MULTILINE))
    for kind in ("pem", "key"):
        told = told.replace(f"{PKI}/join.{kind}", f"{etcd.pki}/join@{HOST.name}.{kind}")
    lines = told.replace(PKI, str(etcd.pki)).replace("https://127.0.0.1:2379", etcd.endpoints[0]).splitlines()
    environment = dict(line.split("=") for line in lines if not line.startswith("#")) | changes
    return CliRunner().invoke(cli, ["etcd", "snapshot", str(folder)], prog_name="podlane", env=environment).exit_code


def test_daily_snapshots_of_a_server(admin: Administration, etcd: SecuredEtcd, tmp_path: Path) -> None:
    admin.ensure_user(f"join@{HOST.name}", [ROOT])
    etcd.certificate(profile.join(HOST.name, HOST.addresses))
    old = [f"etcd-{HOST.name}-2025010{day}T000000Z.db" for day in range(1, 9)]
    for name in (*old, "etcd-other-20250101T000000Z.db"):
        (tmp_path / name).write_text(name)

    def names() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    before = names()
    assert as_the_timer_does(etcd, tmp_path, PODLANE_ETCD_ENDPOINTS="https://127.0.0.1:1") == 1
    assert names() == before
    assert as_the_timer_does(etcd, tmp_path) == 0
    [new] = set(names()) - set(before)
    assert names() == sorted([*old[-6:], new, "etcd-other-20250101T000000Z.db"])
    assert snapshot.verify(tmp_path / new).size > 0
    told = json.loads(podlane(etcd, "status", "-o", "json", "--backups", str(tmp_path)))["lastSnapshot"]
    assert told["file"] == str(tmp_path / new)
    assert snapshotage.taken(tmp_path) == datetime.fromisoformat(told["taken"]).timestamp()
    assert "\nlast snapshot here: " in podlane(etcd, "status", "--backups", str(tmp_path))


def faults(etcd: SecuredEtcd, folder: Path, plain: Etcd) -> dict[str, StoreConfig]:
    """What can be wrong, and whose words say so."""
    now = datetime.now(UTC)
    ours, ok = Authority.load(etcd.pki), etcd.client_config
    stranger = Authority.create(folder / "stranger", now=now)
    files.issue_into(folder / "stranger", "root", stranger, profile.administrator(), now=now)
    for name, begin in (("old", now - timedelta(days=9)), ("new", now + timedelta(days=9))):
        files.issue_into(folder / name, "root", ours, profile.administrator(), now=begin, days=5)
    (folder / "junk").write_text("junk")

    def certificate(where: str) -> StoreConfig:
        return replace(ok, certfile=str(folder / where / "root.pem"), keyfile=str(folder / where / "root.key"))

    return {
        "etcd wants a client certificate: --etcd-certfile": replace(ok, certfile="", keyfile=""),
        "stranger/root.pem: not signed by an authority in ": certificate("stranger"),
        "root.pem: not signed by an authority in ": replace(ok, cafile=str(folder / "stranger" / "ca.pem")),
        "etcd's certificate: not signed by an authority in ": replace(
            certificate("stranger"), cafile=str(folder / "stranger" / "ca.pem")
        ),
        "old/root.pem: certificate has expired": certificate("old"),
        "new/root.pem: certificate is not yet valid; is this host's clock right?": certificate("new"),
        "root.pem and ": replace(certificate("old"), keyfile=ok.keyfile),
        "junk: holds no certificate that can be read": replace(ok, cafile=str(folder / "junk")),
        "cannot be read as PEM": replace(ok, keyfile=str(folder / "junk")),
        "it speaks TLS: https:// and --etcd-cafile are needed": replace(
            ok, endpoints=(ok.endpoints[0].replace("https", "http"),)
        ),
        "it does not speak TLS: http:// instead of https://?": replace(
            ok, endpoints=(plain.endpoints[0].replace("http", "https"),)
        ),
    }


def test_a_connection_that_fails_says_what_is_wrong(etcd: SecuredEtcd, shared_etcd: Etcd, tmp_path: Path) -> None:
    def says(config: StoreConfig) -> str:
        with contextlib.closing(Administration(config)) as admin, pytest.raises(StoreUnavailable) as error:
            admin.status(config.endpoints[0], timeout=PATIENCE)
        return str(error.value)

    wrong = faults(etcd, tmp_path, shared_etcd)
    with ThreadPoolExecutor(len(wrong)) as pool:
        said = dict(zip(wrong, pool.map(says, wrong.values()), strict=True))
    assert {expected: text for expected, text in said.items() if expected not in text} == {}
