"""What an agent takes for the cluster's list of revoked certificates."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from podlane.errors import PodlaneError
from podlane.pki.authority import Authority
from podlane.runtime.clock import SystemClock
from podlane.store import keys
from podlane.store.interface import Put
from podlane.store.memory import MemoryStore
from scheduler.agent.revocations import Revocations
from tests.contract.secured_etcd import eventually

pytestmark = pytest.mark.unit

NOW = datetime.now(UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "pki", now=NOW)


def revocations(authority: Authority, store: MemoryStore) -> Revocations:
    return Revocations(store, authority.folder.parent / "agent", authority.folder / "ca.pem", SystemClock())


def revoked(of: Revocations) -> set[int]:
    return {serial for serial in range(10) if serial in of}


def signed(authority: Authority, number: int, *serials: int) -> bytes:
    return authority.sign_list(dict.fromkeys(serials, NOW), number=number, now=NOW).encode()


def test_the_newest_list_of_our_authority_stands(authority: Authority, tmp_path: Path) -> None:
    agent = revocations(authority, MemoryStore())
    told: list[set[int]] = []
    agent.on_change = lambda: told.append(revoked(agent))
    assert revoked(agent) == set()
    agent.heed(signed(authority, 2, 7))
    agent.heed(signed(authority, 1))
    assert revoked(agent) == {7}, "an older one never replaces a newer one"
    forged = signed(Authority.create(tmp_path / "foreign", now=NOW), 3)
    with pytest.raises(PodlaneError, match="no authority that is trusted; the one before stands"):
        agent.heed(forged)
    assert revoked(agent) == {7}
    assert revoked(revocations(authority, MemoryStore())) == {7}, "after a restart, with etcd away"
    agent.heed(signed(authority, 3, 8))
    assert revoked(agent) == {8}, "that of 7 has expired"
    assert told == [{7}, {8}]


def test_what_is_revoked_is_heard_at_once(authority: Authority) -> None:
    store = MemoryStore()
    agent = revocations(authority, store)
    stop = threading.Event()
    thread = threading.Thread(target=agent.run, args=(stop,))
    thread.start()
    try:
        for number, serial in ((1, 4), (2, 5)):
            store.txn([], [Put(keys.REVOCATION_LIST, signed(authority, number, serial))])
            eventually(partial(agent.__contains__, serial), "the list")
    finally:
        stop.set()
        thread.join()


def test_a_state_file_that_cannot_be_read_ends_nothing(authority: Authority) -> None:
    folder = authority.folder.parent / "agent"
    folder.mkdir()
    (folder / "revoked.json").write_text("{")
    agent = revocations(authority, MemoryStore())
    assert revoked(agent) == set()
    agent.heed(signed(authority, 1, 7))
    assert revoked(revocations(authority, MemoryStore())) == {7}
