"""What proxyd's sync costs as services grow: everything at once, one change, a resync."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial

from bench import kubeproxy_shape as shape
from bench.machine import take_precedence
from bench.proxyd_objects import Objects, changed, objects
from bench.proxyd_world import KubeProxyShaped, Synced, check, namespace, synced
from bench.rows import Benchmark, Declared, Measured, Progress

SIZES = ((1000, 5), (5000, 5), (10_000, 5), (45_000, 1))
FULL_AIMS = {(10_000, 5): 0.4, (45_000, 1): 0.8}
MAIN = (10_000, 5)

FULL_ROUNDS = 5
PEER_FULL_ROUNDS = {(1000, 5): 3, (5000, 5): 3, (10_000, 5): 2}  # in one transaction, as kube-proxy does
CHANGES, PEER_CHANGES = 40, 7
PERCENT_ROUNDS, PEER_PERCENT_ROUNDS = 10, 3
RESYNCS, PEER_LISTS = 7, 3
CHANGES_DURING = 20
PERCENT = 100  # services
PEER = "nft -f of kube-proxy's shape"
PEER_IN_PARTS = f"{PEER}, in parts"  # what in one transaction would take a quarter of an hour
PEER_LIST = "nft list of kube-proxy's shape"


def measure_size(size: tuple[int, int], say: Progress) -> Iterator[Measured]:
    """Of one size: everything from nothing, then one endpoint. The main size: also the other changes."""
    take_precedence()
    label = "{}x{}".format(*size)
    some = objects(*size)
    yield full(f"proxyd.full_{label}", some, PEER_FULL_ROUNDS.get(size), say)
    rng = random.Random(0)
    with synced(some) as (proxy, _):
        ours = Ours(proxy, some, rng)
        samples = [ours.one_endpoint() for _ in range(CHANGES)]
        deleted = [ours.one_service_deleted() for _ in range(CHANGES)] if size == MAIN else []
        percent = [ours.percent() for _ in range(PERCENT_ROUNDS)] if size == MAIN else []
        resyncs = [proxy.verify() for _ in range(RESYNCS)] if size == MAIN else []
        meanwhile = during_resync(ours, min(resyncs)) if size == MAIN else []
        check((e.addresses[0] for each in ours.slices for e in each.endpoints), f"after the changes to {label}")
    timed = {"endpoint": samples, "service": deleted, "1 %": percent, "resync": resyncs, "during resync": meanwhile}
    for what, values in timed.items():
        if values:
            say(f"{label} {what}: {min(values) * 1e3:.2f} to {max(values) * 1e3:.2f} ms")
    with namespace():
        theirs = Theirs(some, rng)
        yield Measured.median(
            f"proxyd.one_endpoint_{label}",
            samples,
            peer=PEER,
            peer_samples=[theirs.percent(1) for _ in range(PEER_CHANGES)],
        )
        if size != MAIN:
            return
        yield Measured.median(
            f"proxyd.one_service_deleted_{label}",
            deleted,
            peer=PEER,
            peer_samples=[theirs.peer.delete(n) for n in range(PEER_CHANGES)],
        )
        yield Measured.median(
            f"proxyd.one_percent_{label}",
            percent,
            peer=PEER,
            peer_samples=[theirs.percent(PERCENT) for _ in range(PEER_PERCENT_ROUNDS)],
        )
        lists = [theirs.peer.list() for _ in range(PEER_LISTS)]
        yield Measured.median(f"proxyd.resync_{label}", resyncs, peer=PEER_LIST, peer_samples=lists)
        yield Measured.median("proxyd.change_during_resync", meanwhile)


def full(name: str, some: Objects, peer_rounds: int | None, say: Progress) -> Measured:
    """By turns, each in a fresh namespace; without `peer_rounds` the peer's once and in parts."""
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(FULL_ROUNDS):
        with synced(some) as (_, seconds):
            ours.append(seconds)
            if not turn:
                check((e.addresses[0] for each in some.slices for e in each.endpoints), name)
        if turn < (peer_rounds or 1):
            peer = KubeProxyShaped(some)
            with namespace():
                theirs.append(peer.full() if peer_rounds else peer.full_in_parts())
        say(f"{name} round {turn + 1} of {FULL_ROUNDS}: {ours[-1]:.3f} s, peer {theirs[-1]:.2f} s")
    return Measured.median(name, ours, peer=PEER if peer_rounds else PEER_IN_PARTS, peer_samples=theirs)


class Ours:
    """Changes to what a proxy has, and what each took it."""

    def __init__(self, proxy: Synced, some: Objects, rng: random.Random) -> None:
        self.proxy = proxy
        self.services, self.slices = some.services, list(some.slices)
        self._rng = rng

    def _numbers(self, count: int) -> Sequence[int]:
        return self._rng.sample(range(len(self.slices)), count)

    def one_endpoint(self, *, settle: bool = True) -> float:
        return self._replaced(1, settle=settle)

    def percent(self) -> float:
        return self._replaced(PERCENT)

    def _replaced(self, count: int, *, settle: bool = True) -> float:
        """A pod of `count` services was replaced by another."""
        numbers = self._numbers(count)
        for number in numbers:
            self.slices[number] = changed(number, self.slices[number])
        seconds = self.proxy.put(*(self.slices[number] for number in numbers))
        if settle:
            self.proxy.settle()
        return seconds

    def one_service_deleted(self) -> float:
        (number,) = self._numbers(1)
        mine = self.services[number], self.slices[number]
        seconds = self.proxy.drop(*mine)
        self.proxy.settle()
        self.proxy.put(*mine)
        self.proxy.settle()
        return seconds


class Theirs:
    """The same changes to kube-proxy's shape."""

    def __init__(self, some: Objects, rng: random.Random) -> None:
        self._services, self._slices, self._rng = some.services, list(some.slices), rng
        self.peer = KubeProxyShaped(some)
        self.peer.full_in_parts()

    def percent(self, count: int) -> float:
        news: list[tuple[int, shape.Port]] = []
        for number in self._rng.sample(range(len(self._slices)), count):
            self._slices[number] = changed(number, self._slices[number])
            news.append((number, shape.ports(self._services[number], [self._slices[number]])[0]))
        return self.peer.change(news)


def during_resync(ours: Ours, took: float) -> list[float]:
    """A change that comes at some moment of a resync, which takes about `took` seconds: until the kernel has it."""
    samples: list[float] = []
    rng = random.Random(1)
    for _ in range(CHANGES_DURING):
        # as in the daemon: a thread of its own, in this one's namespace
        resync = threading.Thread(target=ours.proxy.verify, daemon=True)
        resync.start()
        time.sleep(rng.uniform(0.1, 0.8) * took)
        seconds = ours.one_endpoint(settle=False)
        if resync.is_alive():
            samples.append(seconds)
        resync.join()
        ours.proxy.settle()
    return samples


def _rows(size: tuple[int, int]) -> tuple[Declared, ...]:
    label, what = "{}x{}".format(*size), "{:,} services × {} endpoints".format(*size)
    rows = [
        Declared(f"proxyd.full_{label}", "seconds", f"{what} into an empty kernel", aim=FULL_AIMS.get(size)),
        Declared(f"proxyd.one_endpoint_{label}", "seconds", f"a pod of {what} is replaced → kernel", aim=0.002),
    ]
    if size == MAIN:
        rows += [
            Declared(f"proxyd.one_service_deleted_{label}", "seconds", f"one of {what} goes → kernel", aim=0.002),
            Declared(f"proxyd.one_percent_{label}", "seconds", f"{PERCENT} of {what} change → kernel", aim=0.05),
            Declared(f"proxyd.resync_{label}", "seconds", f"{what} compared with the kernel", aim=1.0),
            Declared("proxyd.change_during_resync", "seconds", "a change that comes during a resync → kernel"),
        ]
    return tuple(rows)


BENCHMARKS = tuple(Benchmark("proxyd", _rows(size), partial(measure_size, size)) for size in SIZES)
