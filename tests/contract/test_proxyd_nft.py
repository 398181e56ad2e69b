"""The fake table and the kernel's, held to the same promises."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator

import pytest

from podlane.errors import PodlaneError
from proxyd.fake import FakeNft
from proxyd.nft import KernelNft, Nft
from proxyd.ruleset import Skeleton
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, HAIRPIN, SERVICES, Frontend, Refused, Tables, Target, Transaction

pytestmark = pytest.mark.contract

SKELETON = Skeleton(("10.5.0.0/16",), ("10.96.0.0/16",))
WEB = Frontend("10.96.0.1", "TCP", 80)
DNS = Frontend("10.96.0.1", "UDP", 53)
A, B, C = (Target(f"10.5.1.{i}", 8080) for i in (2, 3, 4))


class Bench:
    """An Nft, and a way to meddle with its table as root would by hand."""

    def __init__(self, nft: Nft, by_hand: Callable[[str], None], restarted: Callable[[], Nft]) -> None:
        self.nft, self.by_hand, self.restarted = nft, by_hand, restarted


def fake_bench() -> Iterator[Bench]:
    nft = FakeNft()

    def by_hand(what: str) -> None:
        if what == "flush ruleset":
            nft.flush_ruleset()
        elif what == "flush map ip podlane endpoints":
            nft.meddle(lambda tables: tables[ENDPOINTS].clear())
        elif what == "flush chain ip podlane prerouting":
            nft.skeleton = None
            nft.meddle(lambda _: None)
        elif what == "add table ip other":
            nft._generation += 1
        else:
            raise AssertionError(f"the fake knows no {what!r}")

    def restarted() -> Nft:
        nft.restart_proxyd()
        return nft

    yield Bench(nft, by_hand, restarted)


def kernel_bench() -> Iterator[Bench]:
    """A namespace of its own, which a thread holds: KernelNft belongs to the namespace of its maker's thread."""
    name = f"pxc{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    made: list[KernelNft] = []

    def make() -> KernelNft:
        thread = threading.Thread(target=lambda: made.append(_in_namespace(name)))
        thread.start()
        thread.join()
        return made[-1]

    def by_hand(what: str) -> None:
        subprocess.run(["ip", "netns", "exec", name, "nft", *what.split(" ")], check=True)

    try:
        yield Bench(make(), by_hand, make)
    finally:
        for each in made:
            each.close()
        subprocess.run(["ip", "netns", "delete", name], check=True)


class _Namespaced(KernelNft):
    """Runs its `nft` in the namespace, wherever the calling thread is."""

    namespace = ""

    def _run(self, script: str) -> None:
        from podlane.runtime import command

        command.run(["ip", "netns", "exec", self.namespace, "nft", "-f", "-"], input=script, timeout=30)


def _in_namespace(name: str) -> KernelNft:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as there:
        assert libc.setns(there.fileno(), 0x40000000) == 0
    nft = _Namespaced(timeout=10)
    nft.namespace = name
    return nft


@pytest.fixture(params=["fake", "kernel"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from fake_bench() if request.param == "fake" else kernel_bench()


def serving(*targets: Target, frontend: Frontend = WEB) -> Transaction:
    transaction = Transaction(chains=[f"lb{len(targets)}"])
    transaction.put(SERVICES, frontend, f"lb{len(targets)}", replaces=False)
    transaction.put(CLUSTER_IPS, (frontend.address,), None, replaces=False)
    for slot, target in enumerate(targets):
        transaction.put(ENDPOINTS, (*frontend, slot), target, replaces=False)
        transaction.put(HAIRPIN, (target.address,) * 2, None, replaces=False)
    return transaction


def expect(nft: Nft, *transactions: Transaction) -> None:
    tables = Tables()
    for each in transactions:
        tables.apply(each)
    assert nft.dump() == tables


def refused(nft: Nft, transaction: Transaction) -> Refused:
    before = nft.dump()
    with pytest.raises(Refused) as caught:
        nft.commit(transaction)
    assert nft.dump() == before
    return caught.value


def test_before_the_first_load_there_is_nothing(bench):
    assert not bench.nft.intact()
    with pytest.raises(PodlaneError):
        bench.nft.dump()
    with pytest.raises(PodlaneError):
        bench.nft.commit(serving(A))


def test_what_is_committed_is_listed(bench):
    bench.nft.load(SKELETON)
    assert bench.nft.dump() == Tables()
    bench.nft.commit(serving(A, B))
    bench.nft.commit(serving(C, frontend=DNS._replace(address="10.96.0.2")))
    expect(bench.nft, serving(A, B), serving(C, frontend=DNS._replace(address="10.96.0.2")))


def test_an_empty_transaction_is_no_commit(bench):
    bench.nft.load(SKELETON)
    before = bench.nft.generation()
    bench.nft.commit(Transaction())
    assert bench.nft.generation() == before


def test_each_commit_is_one_generation(bench):
    bench.nft.load(SKELETON)
    before = bench.nft.generation()
    bench.nft.commit(serving(A))
    assert bench.nft.generation() == before + 1
    bench.by_hand("add table ip other")
    assert bench.nft.generation() == before + 2


def test_a_key_is_replaced_by_delete_and_add_in_one(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    change = Transaction(chains=["lb2"])
    change.put(SERVICES, WEB, "lb2", replaces=True)
    change.put(ENDPOINTS, (*WEB, 0), C, replaces=True)
    change.put(ENDPOINTS, (*WEB, 1), B, replaces=False)
    change.drop_chains.append("lb1")
    bench.nft.commit(change)
    expect(bench.nft, serving(A), change)
    assert bench.nft.dump().chains == {"lb2"}


def test_making_a_chain_again_is_harmless(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    bench.nft.commit(Transaction(chains=["lb1"]))
    expect(bench.nft, serving(A))


def test_overwriting_a_key_is_refused_and_named(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    change = Transaction()
    change.put(ENDPOINTS, (*WEB, 2), C, replaces=False)
    change.put(ENDPOINTS, (*WEB, 1), C, replaces=False)
    change.put(ENDPOINTS, (*WEB, 3), C, replaces=False)
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.EEXIST, (ENDPOINTS, (*WEB, 1)))


def test_adding_what_is_there_already_is_harmless(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    bench.nft.commit(serving(A))
    expect(bench.nft, serving(A))


def test_deleting_a_missing_key_is_refused_whole_and_named(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    change = Transaction()
    change.delete[ENDPOINTS] += [(*WEB, 1), (*WEB, 9), (*WEB, 0)]
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.ENOENT, (ENDPOINTS, (*WEB, 9)))


def test_a_verdict_needs_its_chain(bench):
    bench.nft.load(SKELETON)
    change = Transaction()
    change.put(SERVICES, WEB, "lb7", replaces=False)
    error = refused(bench.nft, change)
    assert (error.errno, error.element) == (errno.ENOENT, (SERVICES, WEB))


def test_a_chain_in_use_stays(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    assert refused(bench.nft, Transaction(drop_chains=["lb1"])).errno == errno.EBUSY


def test_a_map_takes_no_more_than_its_size(bench):
    bench.nft.load(Skeleton(SKELETON.pod_networks, SKELETON.service_ranges, size=2))
    bench.nft.commit(serving(A, B))
    change = Transaction()
    change.put(ENDPOINTS, (*WEB, 2), C, replaces=False)
    assert refused(bench.nft, change).errno == errno.ENFILE
    replacing = Transaction()
    replacing.put(ENDPOINTS, (*WEB, 1), C, replaces=True)
    bench.nft.commit(replacing)
    expect(bench.nft, serving(A, B), replacing)


def test_loading_again_keeps_every_element(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A, B))
    bench.nft.load(Skeleton(("10.6.0.0/16", "10.7.0.0/16"), ("10.96.0.0/16",)))
    expect(bench.nft, serving(A, B))


def test_a_new_process_finds_everything_and_goes_on(bench):
    """Finding 3: maps that one process loaded grow, and get new pick chains, by the hand of another."""
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    nft = bench.restarted()
    assert not nft.intact()
    nft.load(SKELETON)
    expect(nft, serving(A))
    change = Transaction(chains=["lb3"])
    change.put(SERVICES, WEB, "lb3", replaces=True)
    change.put(ENDPOINTS, (*WEB, 1), B, replaces=False)
    change.put(ENDPOINTS, (*WEB, 2), C, replaces=False)
    nft.commit(change)
    expect(nft, serving(A), change)


def test_a_flush_is_seen(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    assert bench.nft.intact()
    bench.by_hand("flush ruleset")
    assert not bench.nft.intact()
    with pytest.raises(PodlaneError):
        bench.nft.commit(serving(B))
    bench.nft.load(SKELETON)
    assert bench.nft.intact()
    assert bench.nft.dump() == Tables()


def test_a_rule_taken_away_by_hand_is_seen(bench):
    bench.nft.load(SKELETON)
    bench.by_hand("flush chain ip podlane prerouting")
    assert not bench.nft.intact()
    bench.nft.load(SKELETON)
    assert bench.nft.intact()


def test_elements_taken_away_by_hand_are_missing_from_the_list(bench):
    bench.nft.load(SKELETON)
    bench.nft.commit(serving(A))
    bench.by_hand("flush map ip podlane endpoints")
    assert bench.nft.intact()
    assert bench.nft.dump()[ENDPOINTS] == {}


def test_ten_thousand_elements_in_one_transaction(bench):
    bench.nft.load(SKELETON)
    change = Transaction(chains=["lb2"])
    for number in range(5000):
        frontend = Frontend(f"10.96.{number >> 8}.{number & 255}", "TCP", 80)
        change.put(SERVICES, frontend, "lb2", replaces=False)
        change.put(ENDPOINTS, (*frontend, 0), A, replaces=False)
        change.put(ENDPOINTS, (*frontend, 1), B, replaces=False)
    bench.nft.commit(change)
    expect(bench.nft, change)
    late = Transaction()
    late.delete[ENDPOINTS] = [(*Frontend(f"10.96.{n >> 8}.{n & 255}", "TCP", 80), 1) for n in range(4000)]
    late.delete[ENDPOINTS].append((*WEB, 77))
    error = refused(bench.nft, late)
    assert error.element == (ENDPOINTS, (*WEB, 77))


def test_deleting_the_table_twice_is_harmless(bench):
    bench.nft.load(SKELETON)
    bench.nft.delete()
    bench.nft.delete()
    assert not bench.nft.intact()
    bench.nft.load(SKELETON)
    assert bench.nft.dump() == Tables()
