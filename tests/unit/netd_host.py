"""netd as a whole on a store, a kernel, a firewall and a prober in memory, for tests that drive it step by step."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

from netd.cache import NetworkCache
from netd.fake import FakeFirewall, FakeKernel, FakeProber, FakeRenewal
from netd.identity import NodeIdentity
from netd.lease import LeaseHolder
from netd.loop import Netd, Settings
from netd.model import Actual, Interface
from netd.place import Surroundings, Wishes
from netd.renewal import Renewal
from netd.state import State, previous_subnets
from netd.underlay import UnderlayWish
from netd.watched import ConfigEntry, Decoder, LeaseEntry, known
from podlane.api.subnets import LeaseValue
from podlane.runtime.clock import FakeClock
from podlane.store.interface import Delete, Put
from podlane.store.memory import MemoryStore
from podlane.store.mirror import Mirror

PREFIX = "/coreos.com/network"
NETWORK = IPv4Network("10.5.0.0/16")


def put(store: MemoryStore, key: str, value: str | bytes, *, lease: int = 0) -> None:
    data = value.encode() if isinstance(value, str) else value
    store.txn([], [Put(f"{PREFIX}/{key}", data, lease=lease)])


def delete(store: MemoryStore, key: str) -> None:
    store.txn([], [Delete(f"{PREFIX}/{key}")])


def peer(number: int) -> bytes:
    return LeaseValue.vxlan(IPv4Address(f"192.168.64.{number}"), 1, f"02:00:00:00:00:{number:02x}").encode()


@dataclass
class Host:
    """One host's netd, its loops driven by hand and its clock standing still; only the mirror has its thread.

    `interval`: seconds between two writes of its memory. `settings` are its options.
    """

    store: MemoryStore
    folder: Path
    number: int = 11
    seed: int = 1
    kernel: FakeKernel = field(init=False)
    firewall: FakeFirewall = field(default_factory=FakeFirewall)
    renewals: list[FakeRenewal] = field(default_factory=list)
    clock: FakeClock = field(default_factory=FakeClock)
    interval: float = 0.0
    settings: dict[str, bool] = field(default_factory=lambda: {"ip_masq": True})

    def __post_init__(self) -> None:
        address = IPv4Interface(f"192.168.64.{self.number}/24")
        self.kernel = FakeKernel(Interface("eth0", 2, 1500, True, False, "veth", (address,), 0))
        self.stop = threading.Event()
        self.start()

    def start(self, *, wait: bool = True) -> None:
        """A new process on what the last one left. Without `wait` the store need not answer."""
        self.stop = threading.Event()
        cache = NetworkCache(self.folder, clock=self.clock, interval=self.interval)
        remembered = cache.load()
        rng = random.Random(self.seed)
        previous = remembered.own if remembered is not None else previous_subnets(self.subnet_file)
        decode = Decoder(PREFIX)
        surroundings = Surroundings(
            Wishes(PREFIX, UnderlayWish(), lambda: ()),
            kernel=self.kernel,
            store=self.store,
            state=State(self.folder),
            remembered=remembered,
            rng=rng,
            previous=previous,
        )
        identity = NodeIdentity(f"{self.folder}", "boot", f"host{self.number}")

        def holder(on_lost: Callable[[], None]) -> LeaseHolder:
            def renewal(ttl: int, lease_id: int) -> Renewal:
                self.renewals.append(FakeRenewal(self.store, ttl, on_lost, lease_id))
                return self.renewals[-1]

            return LeaseHolder(
                self.store, PREFIX, identity, renewal, rng, previous=previous, known=lambda: known(self.netd.mirror)
            )

        self.netd = Netd(
            Settings(self.subnet_file, **self.settings),
            surroundings=surroundings,
            mirror=lambda on_change: Mirror(
                self.store,
                decode.root,
                decode=decode,
                on_change=on_change,
                name="leases",
                witness=remembered.witness if remembered is not None else 0,
                witness_revision=remembered.revision if remembered is not None else 0,
            ),
            holder=holder,
            prober=self._prober,
            kernel=self.kernel,
            firewall=self.firewall,
            cache=cache,
            remembered=remembered,
            clock=self.clock,
        )
        self.thread = threading.Thread(target=self.netd.mirror.run, args=(self.stop,), daemon=True)
        self.thread.start()
        assert not wait or self.netd.mirror.wait_synced(10)

    def _prober(self, on_change: Callable[[], None]) -> FakeProber:
        self.prober = FakeProber(on_change)
        return self.prober

    def end(self) -> None:
        """As SIGTERM does it."""
        self.stop.set()
        self.store.cut()
        self.thread.join(10)
        self.netd.stop()

    def kill(self) -> None:
        """As SIGKILL does it: nothing is written down."""
        self.stop.set()
        self.store.cut()
        self.thread.join(10)

    def seen(self) -> Actual:
        return self.kernel.observe(["flannel.1"], [NETWORK], [])

    def renewal_of(self, ttl: int) -> FakeRenewal:
        """The last of those for so long."""
        return [each for each in self.renewals if each._ttl == ttl][-1]

    def settle(self) -> None:
        """Let the mirror catch up, then run both loops."""
        self.catch_up()
        self.netd.sync_lease()
        self.catch_up()
        self.netd.sync_kernel()

    def catch_up(self) -> None:
        """Let the mirror see what the store has below flannel's prefix."""
        end = time.monotonic() + 10
        while not self._caught_up():
            assert time.monotonic() < end, "the mirror does not catch up"
            time.sleep(0.002)

    def _caught_up(self) -> bool:
        stored = {kv.key.removeprefix(f"{PREFIX}/"): kv for kv in self.store.list(f"{PREFIX}/").items}
        entries, _ = self.netd.mirror.view()
        if entries.keys() | self.netd.mirror.undecodable.keys() != stored.keys():
            return False
        for key, entry in entries.items():
            if isinstance(entry, LeaseEntry) and entry.revision != stored[key].mod_revision:
                return False
            if isinstance(entry, ConfigEntry) and entry.raw != stored[key].value:
                return False
        return True

    @property
    def subnet_file(self) -> Path:
        return self.folder / "subnet.env"

    @property
    def key(self) -> str:
        """The key of the one lease that names this host."""
        mine = [
            kv.key
            for kv in self.store.list(f"{PREFIX}/subnets/").items
            if f'"192.168.64.{self.number}"'.encode() in kv.value
        ]
        assert len(mine) == 1, mine
        return mine[0].removeprefix(f"{PREFIX}/")

    @property
    def lease(self) -> int:
        kv = self.store.get(f"{PREFIX}/{self.key}")
        return kv.lease if kv else -1
