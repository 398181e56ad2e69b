"""From what is marked as revoked to the list of it, on a store in memory."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from podlane.errors import PodlaneError, StoreUnavailable
from podlane.host import revoking
from podlane.host.emptylist import EMPTY_LIST
from podlane.host.layout import REVOCATION_LIST
from podlane.pki import files, profile, revocations
from podlane.pki.authority import Authority
from podlane.runtime.clock import FakeClock
from podlane.store.interface import Put
from podlane.store.keys import REVOCATION_LIST as KEY
from podlane.store.keys import revoked_key
from podlane.store.memory import MemoryStore
from podlane.store.revocations import read_list
from tests.unit.host_world import ALL, NODE, applier, planned, system

pytestmark = pytest.mark.unit


class World:
    """Servers s1 and s2 with a copy of one authority, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.folders = {name: folder / name for name in ("s1", "s2")}
        Authority.create(self.folders["s1"], now=self.now)
        self.copy()
        for each in self.folders.values():
            (each / "crl.pem").write_text(EMPTY_LIST)
        self.keepers = {
            name: revoking.Keeper(self.store, name, each, partial(Authority.load, each), self.clock)
            for name, each in self.folders.items()
        }

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.clock.now(), UTC)

    def authority(self, server: str = "s1") -> Authority:
        return Authority.load(self.folders[server])

    def copy(self) -> None:
        self.folders["s2"].mkdir(exist_ok=True)
        (self.folders["s2"] / "ca.key").write_text((self.folders["s1"] / "ca.key").read_text())
        self.authority("s2").publish()

    def issue(self, server: str, name: str, days: int = 365) -> int:
        out = self.folders[server] / "out"
        files.issue_into(out, name, self.authority(server), profile.operator(name), now=self.now, days=days)
        return files.read(out / f"{name}.pem").serial_number

    def listed(self) -> set[int]:
        text = read_list(self.store)
        return set(revocations.checked(text, self.authority().trusted, self.now).serials) if text else set()

    def of_etcd(self, server: str) -> set[int]:
        return set(revocations.read((self.folders[server] / "crl.pem").read_text()).serials)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_while_nothing_is_revoked_there_is_no_list(world: World) -> None:
    world.issue("s1", "alice")
    world.keepers["s1"].once()
    assert read_list(world.store) == ""
    assert revoking.mark(world.store, ["nobody"], world.authority(), world.now) == {}


def test_a_server_revokes_what_another_has_signed(world: World) -> None:
    ours, theirs = world.issue("s1", "alice"), world.issue("s2", "alice")
    bob = world.issue("s2", "bob")
    world.keepers["s2"].once()  # tells what it has signed
    assert set(revoking.mark(world.store, ["alice"], world.authority(), world.now)) == {ours, theirs}
    assert revoking.mark(world.store, ["alice"], world.authority(), world.now) == {}, "the same again"
    world.keepers["s2"].once()
    assert world.listed() == world.of_etcd("s2") == {ours, theirs}
    assert world.of_etcd("s1") == set()
    world.keepers["s1"].once()
    assert world.of_etcd("s1") == {ours, theirs}
    assert {name: each.serial_number for name, each in world.authority("s2").issued().items()} == {"bob": bob}
    # what is issued from now on is good, and told again
    new = world.issue("s2", "alice")
    world.keepers["s2"].once()
    assert set(revoking.mark(world.store, ["alice"], None, world.now)) == {new}


def test_what_has_expired_falls_off_the_list(world: World) -> None:
    short, long = world.issue("s1", "short", days=10), world.issue("s1", "long")
    revoking.mark(world.store, ["short", "long"], world.authority(), world.now)
    world.keepers["s1"].once()
    assert world.listed() == {short, long}
    text = read_list(world.store)
    world.keepers["s1"].once()
    assert read_list(world.store) == text, "the same is not signed anew"
    world.clock.advance(timedelta(days=11).total_seconds())
    world.keepers["s1"].once()
    assert world.listed() == world.of_etcd("s1") == {long}
    assert world.store.get(revoked_key(short)) is None


def test_a_new_authority_signs_the_list_anew_and_an_old_one_does_not(world: World) -> None:
    alice = world.issue("s1", "alice")
    revoking.mark(world.store, ["alice"], world.authority(), world.now)
    world.keepers["s1"].once()
    old = revocations.read(read_list(world.store)).number
    world.authority().succeeded(now=world.now).save()
    world.authority().alone().save()
    world.keepers["s1"].once()
    assert world.listed() == {alice}
    assert revocations.read(read_list(world.store)).number > old

    def behind() -> Authority:
        raise StoreUnavailable("the authority was replaced on s1")

    world.folders["s2"].joinpath("ca.pem").write_text(world.authority().bundle)
    late = revoking.Keeper(world.store, "s2", world.folders["s2"], behind, world.clock)
    with pytest.raises(StoreUnavailable):
        late.once()
    assert world.of_etcd("s2") == {alice}, "it keeps what the other signs"


def test_a_mark_or_a_list_that_cannot_be_read_lets_nobody_in(world: World) -> None:
    alice = world.issue("s1", "alice")
    revoking.mark(world.store, ["alice"], world.authority(), world.now)
    world.store.txn([], [Put(revoked_key(alice), b"{"), Put(KEY, b"junk"), Put("/podlane-admin/revoked/x", b"")])
    world.keepers["s1"].once()
    assert world.listed() == {alice}


def test_etcd_is_not_given_a_list_of_strangers_nor_an_older_one(world: World, tmp_path: Path) -> None:
    folder, trusted = world.folders["s1"], world.authority().trusted
    foreign = Authority.create(tmp_path / "foreign", now=world.now)
    new, old = (world.authority().sign_list({n: world.now}, number=n, now=world.now) for n in (2, 1))
    assert revoking.keep(folder, new, trusted, world.now)
    assert not revoking.keep(folder, old, trusted, world.now)
    with pytest.raises(PodlaneError, match="no authority that is trusted"):
        revoking.keep(folder, foreign.sign_list({}, number=9, now=world.now), trusted, world.now)
    assert world.of_etcd("s1") == {2}
    # a host that has joined another cluster takes that one's
    assert revoking.keep(folder, foreign.sign_list({}, number=1, now=world.now), foreign.trusted, world.now)
    (folder / "crl.pem").unlink()
    assert not revoking.keep(folder, new, trusted, world.now), "a host without etcd needs none"


def test_a_list_that_was_lost_or_spoilt_is_made_anew(world: World) -> None:
    folder = world.folders["s1"]
    alice = world.issue("s1", "alice")
    for spoil in ((folder / "crl.pem").unlink, partial((folder / "crl.pem").write_text, "")):
        spoil()
        world.keepers["s1"].once()
        assert world.of_etcd("s1") == set()
    revoking.mark(world.store, ["alice"], world.authority(), world.now)
    (folder / "crl.pem").unlink()
    world.keepers["s1"].once()
    assert world.of_etcd("s1") == {alice}


def test_an_installation_puts_a_list_where_there_is_none_before_etcd_starts() -> None:
    fake = system(ALL)
    applier(fake).apply(planned(fake, ALL))
    assert fake.files[REVOCATION_LIST].content == EMPTY_LIST.encode()
    fake.write(REVOCATION_LIST, b"the cluster's", 0o644)
    assert REVOCATION_LIST not in str(planned(fake, ALL))
    assert REVOCATION_LIST not in str(planned(system(NODE), NODE))
