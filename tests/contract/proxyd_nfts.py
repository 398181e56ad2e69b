"""What the contract tests of proxyd's tables share: the fake and the kernel, and root's hand beside them."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from proxyd.fake import FakeNft
from proxyd.nft import KernelNft, Nft
from proxyd.ruleset import Skeleton
from proxyd.tables import (
    ADDRESSES,
    ADMITTED,
    CLUSTER_IPS,
    ENDPOINTS,
    EXTERNAL,
    HAIRPIN,
    INSIDE,
    IPV4,
    IPV6,
    PICKS,
    REFUSED,
    SERVICES,
    SOURCE_RANGES,
    Family,
    Frontend,
    Key,
    Refused,
    Tables,
    Target,
    Transaction,
    pack_address,
    pack_frontend,
    pack_mark,
    pack_target,
)
from tests.kernel.conftest import NetnsMaker, eventually, inside

SKELETON = Skeleton(("10.5.0.0/16",), ("10.96.0.0/16",))
SKELETON6 = Skeleton(("fd00:5::/48",), ("fd00:96::/112",), family=IPV6)
WEB, DNS = pack_frontend(Frontend("10.96.0.1", "TCP", 80)), pack_frontend(Frontend("10.96.0.2", "UDP", 53))
WEB6 = pack_frontend(Frontend("fd00:96::1", "SCTP", 80))
A, B, C = (pack_target(Target(f"10.5.1.{i}", 8080)) for i in (2, 3, 4))
A6, B6 = (pack_target(Target(f"fd00:5::{i}", 8080)) for i in (2, 3))


class Bench:
    """An Nft, and ways to meddle with its table as root would by hand.

    `drained()` returns once everything that was told so far has been read.
    """

    def __init__(
        self,
        nft: Nft,
        by_hand: Callable[[str], None],
        restarted: Callable[[], Nft],
        drained: Callable[[], None],
    ) -> None:
        self.nft, self.by_hand, self.restarted, self._drained = nft, by_hand, restarted, drained

    @contextmanager
    def watched(self) -> Iterator[list[None]]:
        """Watch meanwhile; the list has one entry for each call, all of them once the block is left."""
        with self._watching([]):
            pass  # what happened before is not to be told of
        calls: list[None] = []
        with self._watching(calls):
            yield calls

    @contextmanager
    def _watching(self, calls: list[None]) -> Iterator[None]:
        stop = threading.Event()
        watcher = threading.Thread(target=self.nft.watch, args=(stop, lambda: calls.append(None)))
        watcher.start()
        try:
            self._drained()
            yield
            self._drained()
        finally:
            stop.set()
            watcher.join()


def fake_bench() -> Iterator[Bench]:
    nft = FakeNft()
    unwatched = nft.changed
    hands: dict[str, Callable[[], None]] = {
        "flush ruleset": nft.flush_ruleset,
        "flush map ip podlane endpoints": lambda: nft.meddle(lambda tables: tables[ENDPOINTS].clear()),
        "flush set ip6 podlane cluster_ips": lambda: nft.meddle(lambda tables: tables[CLUSTER_IPS].clear(), IPV6),
        "flush chain ip podlane lb2": lambda: nft.meddle(lambda tables: tables.chains.discard("lb2")),
        "flush chain ip podlane prerouting": lambda: (nft.skeletons.pop(IPV4), nft.meddle(lambda _: None)),  # type: ignore[dict-item]
        "add table ip other": lambda: None,
        "add set ip other podlane { type ipv4_addr; }": lambda: None,
    }

    def restarted() -> Nft:
        nft.restart_proxyd()
        return nft

    yield Bench(nft, lambda what: hands[what](), restarted, lambda: eventually(lambda: nft.changed is not unwatched))


def kernel_bench() -> Iterator[Bench]:
    """In a namespace of its own, which the test's thread is in meanwhile."""
    maker = NetnsMaker()
    ns = maker.add("nft")
    made: list[KernelNft] = []

    def make() -> KernelNft:
        made.append(KernelNft(timeout=30))
        return made[-1]

    def by_hand(what: str) -> None:
        subprocess.run(["nft", what], check=True)

    try:
        with inside(ns):
            yield Bench(make(), by_hand, make, lambda: eventually(_nothing_unread))
    finally:
        for each in made:
            each.close()
        maker.close()


def _nothing_unread() -> bool:
    """Whether no socket of this namespace that is told of nftables' commits has bytes to be read."""
    lines = Path("/proc/thread-self/net/netlink").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    return all(row[4] == "0" for row in rows if row[1] == "12" and int(row[3], 16) & 1 << 6)


@pytest.fixture(params=["fake", "kernel"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    yield from fake_bench() if request.param == "fake" else kernel_bench()


# --- transactions ------------------------------------------------------------------------


def slot(at: Key, number: int) -> Key:
    return at + pack_mark(number)


def serving(*targets: bytes, at: Key = WEB, family: Family = IPV4) -> Transaction:
    transaction = Transaction(family, chains=[f"lb{len(targets)}"])
    transaction.put(SERVICES, at, f"goto lb{len(targets)}", replaces=False)
    transaction.put(CLUSTER_IPS, at[:-8], None, replaces=False)
    for number, target in enumerate(targets):
        transaction.put(ENDPOINTS, slot(at, number), target, replaces=False)
        transaction.put(HAIRPIN, target[:-4] * 2, None, replaces=False)
    return transaction


def everything(at: Key, targets: tuple[bytes, bytes], family: Family) -> Transaction:
    """An element of each map, and a chain of each kind."""
    transaction = serving(*targets, at=at, family=family)
    others = ["external-source", "hash1021", "lb2-aff60", "outside-hash8191-aff10800", "outside-lb0", "outside-lb1"]
    transaction.chains += others
    address = at[:-8]
    external = pack_address("198.51.100.1" if family is IPV4 else "2001:db8::1") + at[-8:]
    first, last = ("192.0.2.0", "192.0.2.255") if family is IPV4 else ("2001:db8::", "2001:db8::ffff")
    put = transaction.add
    put[SERVICES] |= {external: "goto ranged", address + at[-8:-4] + b"\0\x51\0\0": "drop"}
    put[ADMITTED][external] = "goto outside-lb1"
    put[INSIDE][external] = "goto lb2-aff60"
    put[EXTERNAL][external] = "goto masquerade-own"
    put[REFUSED][external[:-4] + b"\0\x52\0\0"] = None
    put[SOURCE_RANGES][external + pack_address(first) + external + pack_address(last)] = None
    put[ENDPOINTS][slot(external, 0x80000000)] = targets[0]
    put[PICKS] |= {slot(external, number): pack_mark(0xFEDCBA90 + number) for number in range(2)}
    put[ADDRESSES] |= {pack_mark(0xFEDCBA90 + number): each for number, each in enumerate(targets)}
    return transaction


def expect(nft: Nft, *transactions: Transaction) -> None:
    """The table has what these have put there."""
    tables = Tables(transactions[0].family)
    for each in transactions:
        tables.apply(each)
    found: Any = nft.dump(tables.family)
    assert found.chains == tables.chains
    assert found.maps == tables.maps


def refused(nft: Nft, transaction: Transaction) -> Refused:
    before = nft.dump(transaction.family)
    with pytest.raises(Refused) as caught:
        nft.commit(transaction)
    assert nft.dump(transaction.family) == before
    return caught.value
