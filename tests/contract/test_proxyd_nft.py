"""The fake table and the kernel's, held to the same promises: what is committed, listed and refused."""

from __future__ import annotations

import errno

import pytest

from podlane.errors import PodlaneError
from proxyd.ruleset import Skeleton
from proxyd.tables import (
    ADDRESSES,
    CLUSTER_IPS,
    ENDPOINTS,
    EXTERNAL,
    HAIRPIN,
    IPV4,
    IPV6,
    PICKS,
    SERVICES,
    SOURCE_RANGES,
    Frontend,
    Tables,
    Transaction,
    pack_address,
    pack_frontend,
    pack_mark,
)
from tests.contract.proxyd_nfts import (
    A6,
    B6,
    DNS,
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
    refused,
    serving,
    slot,
)

pytestmark = pytest.mark.contract
__all__ = ["bench"]


def test_before_the_first_load_there_is_nothing(bench):
    assert not bench.nft.intact(IPV4)
    with pytest.raises(PodlaneError):
        bench.nft.dump(IPV4)
    with pytest.raises(PodlaneError):
        bench.nft.commit(serving(A))


def test_what_is_committed_is_listed(bench):
    bench.nft.load(SKELETON)
    assert bench.nft.dump(IPV4) == Tables(IPV4)
    bench.nft.commit(serving(A, B))
    bench.nft.commit(serving(C, at=DNS))
    expect(bench.nft, serving(A, B), serving(C, at=DNS))


@pytest.mark.parametrize(
    ("skeleton", "at", "targets"), [(SKELETON, WEB, (A, B)), (SKELETON6, WEB6, (A6, B6))], ids=["ipv4", "ipv6"]
)
def test_an_element_of_each_map_and_a_chain_of_each_kind(bench, skeleton, at, targets):
    bench.nft.load(skeleton)
    whole = everything(at, targets, skeleton.family)
    bench.nft.commit(whole)
    expect(bench.nft, whole)
    gone = Transaction(skeleton.family, delete={name: list(added) for name, added in whole.add.items()})
    gone.drop_chains = [chain for chain in whole.chains if chain != "external-source"]
    bench.nft.commit(gone)
    expect(bench.nft, whole, gone)


def test_families_do_not_know_of_each_other(bench):
    bench.nft.load(SKELETON)
    bench.nft.load(SKELETON6)
    bench.nft.commit(serving(A, B))
    bench.nft.commit(serving(A6, at=WEB6, family=IPV6))
    expect(bench.nft, serving(A, B))
    expect(bench.nft, serving(A6, at=WEB6, family=IPV6))
    bench.nft.delete(IPV4)
    assert not bench.nft.intact(IPV4)
    assert bench.nft.intact(IPV6)
    expect(bench.nft, serving(A6, at=WEB6, family=IPV6))


def test_a_key_is_replaced_by_delete_and_add_in_one(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    change = Transaction(IPV4, chains=["lb2"])
    change.put(SERVICES, WEB, "goto lb2", replaces=True)
    change.put(ENDPOINTS, slot(WEB, 0), C, replaces=True)
    change.put(ENDPOINTS, slot(WEB, 1), B, replaces=False)
    change.drop_chains.append("lb1")
    bench.nft.commit(change)
    expect(bench.nft, serving(A), change)
    assert bench.nft.dump(IPV4).chains == {"lb2"}


def test_making_a_chain_again_is_harmless(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    bench.nft.commit(Transaction(IPV4, chains=["lb1"]))
    expect(bench.nft, serving(A))


# --- what is refused ---------------------------------------------------------------------


def test_overwriting_a_key_is_refused_and_named(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    change = Transaction(IPV4)
    for number in (2, 1, 3):
        change.put(ENDPOINTS, slot(WEB, number), C, replaces=False)
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.EEXIST, (ENDPOINTS, slot(WEB, 1)))


def test_overwriting_an_id_is_refused_and_named(bench):
    bench.nft.load(SKELETON)
    whole = everything(WEB, (A, B), IPV4)
    bench.nft.commit(whole)
    for name, value in ((ADDRESSES, C), (PICKS, pack_mark(7)), (EXTERNAL, "goto masquerade-all")):
        change = Transaction(IPV4)
        key = next(iter(whole.add[name]))
        change.put(name, key, value, replaces=False)
        error = refused(bench.nft, change)
        assert (error.errno, error.element) == (errno.EEXIST, (name, key))


def test_adding_what_is_there_already_is_harmless(bench):
    bench.nft.load(SKELETON)
    for _ in range(2):
        bench.nft.commit(everything(WEB, (A, B), IPV4))
    expect(bench.nft, everything(WEB, (A, B), IPV4))


def test_deleting_a_missing_key_is_refused_whole_and_named(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    change = Transaction(IPV4)
    change.delete[ENDPOINTS] += [slot(WEB, 1), slot(WEB, 9), slot(WEB, 0)]
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.ENOENT, (ENDPOINTS, slot(WEB, 9)))


@pytest.mark.parametrize("name", [CLUSTER_IPS, HAIRPIN, ADDRESSES])
def test_deleting_a_missing_member_is_refused_and_named(bench, name):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    keys = {CLUSTER_IPS: pack_address("10.96.0.9"), HAIRPIN: A[:-4] + B[:-4], ADDRESSES: pack_mark(9)}
    change = Transaction(IPV4)
    change.delete[name].append(keys[name])
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.ENOENT, (name, keys[name]))


def test_a_verdict_needs_its_chain(bench):
    bench.nft.load(SKELETON)
    change = Transaction(IPV4)
    change.put(SERVICES, WEB, "goto lb7", replaces=False)
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.ENOENT, (SERVICES, WEB))


def test_a_chain_in_use_stays(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    assert refused(bench.nft, Transaction(IPV4, drop_chains=["lb1"])).errno == errno.EBUSY


def test_a_map_takes_no_more_than_its_size(bench):
    bench.nft.load(Skeleton(SKELETON.pod_networks, SKELETON.service_ranges, size=2))
    bench.nft.commit(serving(A, B))
    change = Transaction(IPV4)
    change.put(ENDPOINTS, slot(WEB, 2), C, replaces=False)
    assert refused(bench.nft, change).errno == errno.ENFILE
    replacing = Transaction(IPV4)
    replacing.put(ENDPOINTS, slot(WEB, 1), C, replaces=True)
    bench.nft.commit(replacing)
    expect(bench.nft, serving(A, B), replacing)


def test_source_ranges_beside_each_other(bench):
    bench.nft.load(SKELETON)
    ends = [("192.0.2.0", "192.0.2.255"), ("192.0.3.7", "192.0.3.7"), ("192.0.3.8", "203.0.113.255")]
    change = Transaction(IPV4)
    for at in (WEB, DNS):
        for first, last in ends:
            change.put(SOURCE_RANGES, at + pack_address(first) + at + pack_address(last), None, replaces=False)
    bench.nft.commit(change)
    expect(bench.nft, change)
    fewer = Transaction(IPV4)
    fewer.delete[SOURCE_RANGES] = list(change.add[SOURCE_RANGES])[1:5]
    bench.nft.commit(fewer)
    expect(bench.nft, change, fewer)


def test_ten_thousand_elements_in_one_transaction(bench):
    bench.nft.load(SKELETON)
    frontends = [pack_frontend(Frontend(f"10.96.{n >> 8}.{n & 255}", "TCP", 80)) for n in range(5000)]
    change = Transaction(IPV4, chains=["lb2"])
    for at in frontends:
        change.put(SERVICES, at, "goto lb2", replaces=False)
        change.put(ENDPOINTS, slot(at, 0), A, replaces=False)
        change.put(ENDPOINTS, slot(at, 1), B, replaces=False)
    bench.nft.commit(change)
    expect(bench.nft, change)
    late = Transaction(IPV4)
    late.delete[ENDPOINTS] = [slot(at, 1) for at in frontends[:4000]]
    late.delete[ENDPOINTS].append(slot(WEB, 77))
    assert refused(bench.nft, late).element == (ENDPOINTS, slot(WEB, 77))
