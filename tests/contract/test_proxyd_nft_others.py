"""The fake table and the kernel's: loading again, another process, others' hands and who is told of them."""

from __future__ import annotations

import pytest

from podlane.errors import PodlaneError
from proxyd.ruleset import Skeleton
from proxyd.tables import ENDPOINTS, IPV4, IPV6, SERVICES, Tables, Transaction
from tests.contract.proxyd_nfts import (
    A6,
    SKELETON,
    SKELETON6,
    WEB,
    WEB6,
    A,
    B,
    C,
    bench,
    everything,
    expect,
    serving,
    slot,
)

pytestmark = pytest.mark.contract
__all__ = ["bench"]


def test_loading_again_keeps_every_element(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(everything(WEB, (A, B), IPV4))
    bench.nft.load(Skeleton(("10.6.0.0/16", "10.7.0.0/16"), ("10.96.0.0/16",)))
    expect(bench.nft, everything(WEB, (A, B), IPV4))
    assert bench.nft.intact(IPV4)


def test_a_new_process_finds_everything_and_goes_on(bench):
    """Finding 3: maps that one process loaded grow, and get new pick chains, by the hand of another."""
    bench.nft.load(SKELETON)
    bench.nft.commit(everything(WEB, (A, B), IPV4))
    nft = bench.restarted()
    assert not nft.intact(IPV4)
    nft.load(SKELETON)
    expect(nft, everything(WEB, (A, B), IPV4))
    change = Transaction(IPV4, chains=["lb3"])
    change.put(SERVICES, WEB, "goto lb3", replaces=True)
    change.put(ENDPOINTS, slot(WEB, 2), C, replaces=False)
    nft.commit(change)
    expect(nft, everything(WEB, (A, B), IPV4), change)


def test_a_flush_is_seen(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    assert bench.nft.intact(IPV4)
    bench.by_hand("flush ruleset")
    assert not bench.nft.intact(IPV4)
    with pytest.raises(PodlaneError):
        bench.nft.commit(serving(B))
    bench.nft.load(SKELETON)
    assert bench.nft.intact(IPV4)
    assert bench.nft.dump(IPV4) == Tables(IPV4)


def test_a_rule_taken_away_by_hand_is_seen(bench):
    bench.nft.load(SKELETON)
    bench.by_hand("flush chain ip podlane prerouting")
    assert not bench.nft.intact(IPV4)
    bench.nft.load(SKELETON)
    assert bench.nft.intact(IPV4)


def test_elements_taken_away_by_hand_are_missing_from_the_list(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    bench.by_hand("flush map ip podlane endpoints")
    assert bench.nft.intact(IPV4)
    assert bench.nft.dump(IPV4)[ENDPOINTS] == {}


def test_a_pick_chain_without_its_rules_is_missing_from_the_list(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    bench.by_hand("flush chain ip podlane lb2")
    assert bench.nft.intact(IPV4)
    assert bench.nft.dump(IPV4).chains == set()
    bench.nft.commit(Transaction(IPV4, chains=["lb2"]))
    expect(bench.nft, serving(A, B))


def test_deleting_the_table_twice_is_harmless(bench):
    bench.nft.load(SKELETON)
    bench.nft.delete(IPV4)
    bench.nft.delete(IPV4)
    assert not bench.nft.intact(IPV4)
    bench.nft.load(SKELETON)
    assert bench.nft.dump(IPV4) == Tables(IPV4)


# --- who is told ------------------------------------------------------------------------------


def test_our_own_commits_are_not_told_of(bench):
    bench.nft.load(SKELETON)
    bench.nft.load(SKELETON6)
    with bench.watched() as calls:
        bench.nft.commit(everything(WEB, (A, B), IPV4))
        bench.nft.commit(serving(A6, at=WEB6, family=IPV6))
        change = Transaction(IPV4)
        change.delete[ENDPOINTS].append(slot(WEB, 1))
        bench.nft.commit(change)
    assert calls == []


def test_changes_of_other_tables_are_not_told_of(bench):
    bench.nft.load(SKELETON)
    with bench.watched() as calls:
        bench.by_hand("add table ip other")
    assert calls == []


@pytest.mark.parametrize(
    "what",
    [
        "flush map ip podlane endpoints",
        "flush set ip6 podlane cluster_ips",
        "flush chain ip podlane lb2",
        "flush chain ip podlane prerouting",
        "flush ruleset",
    ],
)
def test_others_changes_of_our_tables_are_told_of(bench, what):
    bench.nft.load(SKELETON)
    bench.nft.load(SKELETON6)
    bench.nft.commit(serving(A, B))
    bench.nft.commit(serving(A6, at=WEB6, family=IPV6))
    with bench.watched() as calls:
        bench.nft.commit(serving(A, B))
        bench.by_hand(what)
    assert calls


def test_an_empty_transaction_is_no_commit(bench):
    bench.nft.load(SKELETON)
    other = bench.restarted()
    with bench.watched() as calls:
        other.commit(Transaction(IPV4))
    assert calls == []
